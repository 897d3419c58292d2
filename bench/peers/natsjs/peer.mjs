// The Object Store of @nats-io/obj, driven by lines of JSON as bench/peers/driver.py says.
import { randomBytes } from "node:crypto";
import { createInterface } from "node:readline";
import { connect } from "@nats-io/transport-node";
import { Objm } from "@nats-io/obj";

const [url, bucket] = process.argv.slice(2);
const connection = await connect({ servers: url });
const store = await new Objm(connection, { timeout: 60_000 }).open(bucket);
const now = () => performance.now() / 1000;

const verbs = {
  async put(name, data) {
    await store.putBlob({ name }, data);
  },
  async get(name, _, firstBytes) {
    const begun = now();
    let first = 0;
    const object = await store.get(name);
    if (object === null) throw new Error(`${name} is not there`);
    for await (const _chunk of object.data) first ||= now() - begun;
    const failure = await object.error;
    if (failure) throw failure;
    firstBytes.push(first);
  },
  async info(name) {
    if ((await store.info(name)) === null) throw new Error(`${name} is not there`);
  },
};

async function measured({ verb, size, count, at_once, run }) {
  const data = verb === "put" ? randomBytes(size) : null;
  const latencies = [];
  const firstBytes = [];
  let next = 0;
  async function lane() {
    while (next < count) {
      const name = `${run}-${++next}`;
      const begun = now();
      await verbs[verb](name, data, firstBytes);
      latencies.push(now() - begun);
    }
  }
  const started = now();
  const before = process.cpuUsage();
  await Promise.all(Array.from({ length: at_once }, lane));
  const seconds = now() - started;
  const used = process.cpuUsage(before);
  const cpu = (used.user + used.system) / 1e6;
  return { seconds, cpu, held: data?.length ?? 0, latencies, first_bytes: firstBytes };
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = await measured(JSON.parse(line));
  } catch (error) {
    answer = { error: String(error) };
  }
  console.log(JSON.stringify(answer));
}
await connection.close();
