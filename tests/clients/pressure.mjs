// Sends without end to a server that does not read, or leaves a server's endless answer unread, until nothing moves any
// more for two seconds:
// `pressure.mjs 1|2 up|down PORT`. Says as JSON how many bytes the connection took from us.
import fs from 'node:fs';
import http2 from 'node:http2';
import https from 'node:https';

const [, , version, direction, port] = process.argv;
const ca = fs.readFileSync(process.env.NODE_EXTRA_CA_CERTS);
const url = `https://edge.demo.test:${port}`;
const path = direction === 'up' ? '/stop' : '/endless';
const chunk = Buffer.alloc(16384, 'x');
let socket;

function flood(stream) {
  const go = () => { while (stream.write(chunk)); };
  stream.on('drain', go).on('error', () => {});
  go();
}

if (version === '2') {
  const session = http2.connect(url, { ca });
  session.on('connect', () => (socket = session.socket)).on('error', () => {});
  const stream = session.request({ ':method': direction === 'up' ? 'POST' : 'GET', ':path': path }, { endStream: direction === 'down' });
  stream.on('error', () => {});
  stream.on('response', () => stream.pause());
  if (direction === 'up') flood(stream);
} else {
  const request = https.request(url + path, { ca, method: direction === 'up' ? 'POST' : 'GET' });
  request.on('socket', (made) => (socket = made)).on('error', () => {});
  request.on('response', (response) => response.pause());
  if (direction === 'up') flood(request); else request.end();
}
let [moved, still] = [0, 0];
setInterval(() => {
  const now = (socket?.bytesWritten ?? 0) + (socket?.bytesRead ?? 0);
  still = now === moved || now < 50000 ? still + 1 : 0;
  moved = now;
  if (still < (now < 50000 ? 250 : 20)) return;
  console.log(JSON.stringify({ sent: socket?.bytesWritten ?? 0, received: socket?.bytesRead ?? 0 }));
  process.exit(0);
}, 100);
