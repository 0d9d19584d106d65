// One session of HTTP/2, some of whose readers stall: `stalled.mjs PORT STALLED CALLS BYTES`. Says as JSON how many of the
// other calls were answered meanwhile, and how many bytes each stalled reader got once it went on.
import fs from 'node:fs';
import http2 from 'node:http2';

const [, , port, stalled, calls, expected] = process.argv;
const ca = fs.readFileSync(process.env.NODE_EXTRA_CA_CERTS);
const session = http2.connect(`https://edge.demo.test:${port}`, { ca, settings: { initialWindowSize: 16384 } });
const told = { answered: 0, bytes: [], errors: [] };
session.on('error', (error) => told.errors.push(error.code));

const call = (path) =>
  new Promise((resolve) => {
    const stream = session.request({ ':path': path });
    let body = '';
    stream.on('data', (bytes) => (body += bytes));
    stream.on('error', (error) => { told.errors.push(error.code); resolve(); });
    stream.on('end', () => { if (body === 'ok') told.answered += 1; resolve(); });
  });

const readers = [];
for (let i = 0; i < Number(stalled); i += 1) {
  await new Promise((resolve) => {
    const stream = session.request({ ':path': `/small/${i}` });
    stream.on('error', (error) => { told.errors.push(error.code); resolve(); });
    stream.on('response', () => { stream.pause(); resolve(); });
    readers.push(stream);
  });
}
await new Promise((resolve) => setTimeout(resolve, 1500));
for (let i = 0; i < Number(calls); i += 1) await call(`/other/${i}`);
fs.writeSync(1, 'stalled\n');
// Whoever looks at the proxy's memory does so now.
await new Promise((resolve) => setTimeout(resolve, 1500));
for (const stream of readers) {
  let bytes = 0;
  await new Promise((resolve) => {
    const timer = setTimeout(resolve, 20000);
    const look = () => { if (bytes >= Number(expected)) { clearTimeout(timer); resolve(); } };
    stream.on('data', (more) => { bytes += more.length; look(); });
    stream.resume();
  });
  told.bytes.push(bytes);
}
console.log(JSON.stringify(told));
process.exit(0);
