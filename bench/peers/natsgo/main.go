// The Object Store of nats.go, driven by lines of JSON as bench/peers/driver.py says.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type order struct {
	Verb   string `json:"verb"`
	Size   int    `json:"size"`
	Count  int    `json:"count"`
	AtOnce int    `json:"at_once"`
	Run    string `json:"run"`
}

type answer struct {
	Seconds    float64   `json:"seconds"`
	CPU        float64   `json:"cpu"`
	Held       int       `json:"held"`
	Latencies  []float64 `json:"latencies"`
	FirstBytes []float64 `json:"first_bytes"`
}

// firstByte notes when the first write came, and drops what is written.
type firstByte struct{ at time.Time }

func (f *firstByte) Write(data []byte) (int, error) {
	if f.at.IsZero() {
		f.at = time.Now()
	}
	return len(data), nil
}

func cpu() float64 {
	var used syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	nc, err := nats.Connect(os.Args[1])
	check(err)
	js, err := jetstream.New(nc)
	check(err)
	ctx := context.Background()
	store, err := js.ObjectStore(ctx, os.Args[2])
	check(err)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var o order
		check(json.Unmarshal(lines.Bytes(), &o))
		var data []byte
		if o.Verb == "put" {
			data = make([]byte, o.Size)
			_, err := rand.Read(data)
			check(err)
		}
		result := answer{Held: len(data)}
		used, started := cpu(), time.Now()
		if err := run(ctx, store, o, data, &result); err != nil {
			fmt.Printf("{\"error\": %q}\n", err.Error())
			continue
		}
		result.Seconds, result.CPU = time.Since(started).Seconds(), cpu()-used
		check(json.NewEncoder(os.Stdout).Encode(result))
	}
}

func run(ctx context.Context, store jetstream.ObjectStore, o order, data []byte, result *answer) error {
	var guard sync.Mutex
	var next atomic.Int64
	var failed error
	var once sync.Once
	var lanes sync.WaitGroup
	for range o.AtOnce {
		lanes.Add(1)
		go func() {
			defer lanes.Done()
			for i := next.Add(1); i <= int64(o.Count); i = next.Add(1) {
				begun := time.Now()
				first, err := one(ctx, store, o.Verb, fmt.Sprintf("%s-%d", o.Run, i), data)
				if err != nil {
					once.Do(func() { failed = err })
					return
				}
				took := time.Since(begun).Seconds()
				guard.Lock()
				result.Latencies = append(result.Latencies, took)
				if !first.IsZero() {
					result.FirstBytes = append(result.FirstBytes, first.Sub(begun).Seconds())
				}
				guard.Unlock()
			}
		}()
	}
	lanes.Wait()
	return failed
}

// one does one operation, and tells when the first byte of a get was there.
func one(ctx context.Context, store jetstream.ObjectStore, verb, name string, data []byte) (time.Time, error) {
	var nowhere firstByte
	switch verb {
	case "put":
		_, err := store.Put(ctx, jetstream.ObjectMeta{Name: name}, bytes.NewReader(data))
		return time.Time{}, err
	case "get":
		object, err := store.Get(ctx, name)
		if err != nil {
			return time.Time{}, err
		}
		defer object.Close()
		_, err = io.Copy(&nowhere, object)
		return nowhere.at, err
	default:
		_, err := store.GetInfo(ctx, name)
		return time.Time{}, err
	}
}
