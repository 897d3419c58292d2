// Put, get and ask for a blob with nothing but a NATS library: npm install @nats-io/transport-node

import { connect } from "@nats-io/transport-node";

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const put = await nc.request("blob.put", "hello, blob", { timeout: 5000 });
const { digest } = put.json();
const got = await nc.request("blob.get", digest, { timeout: 5000 });
const has = await nc.request("blob.has", digest, { timeout: 5000 });
for (const reply of [put, got, has]) { // an error is a reply with a header Nats-Service-Error-Code
  console.log(reply.string());
}
await nc.close();
