// What programs of Node's HTTP clients do and read, as JSON lines: `http_clients.mjs fetch|http2 HOST:PORT`.
import fs from 'node:fs';
import http2 from 'node:http2';

const [, , which, host] = process.argv;
const pieces = ['one ', 'two ', 'three'];
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function told(call, version, status, received) {
  const texts = received.map((piece) => Buffer.from(piece).toString());
  console.log(JSON.stringify({ call, version, status, first: texts[0], text: texts.join('') }));
}

async function* upload() {
  for (const piece of pieces) {
    yield Buffer.from(piece);
    await pause(50);
  }
}

async function withFetch(call, method, path, body) {
  const answer = await fetch(`https://${host}${path}?fetch`, { method, body, duplex: 'half' });
  const received = [];
  for await (const piece of answer.body) received.push(piece);
  // fetch does not tell the version; Node's speaks HTTP/1.1 only.
  told(call, 'HTTP/1.1', answer.status, received);
}

async function withHttp2(call, method, path, body) {
  const stream = session.request({ ':method': method, ':path': `${path}?http2` }, { endStream: body === undefined });
  // The answer may begin before the request has ended.
  const status = new Promise((done, fail) => {
    stream.on('response', (headers) => done(headers[':status'])).on('error', fail);
  });
  if (body !== undefined) {
    if (typeof body === 'string') stream.end(body);
    else for await (const piece of body) stream.write(piece);
    stream.end();
  }
  const received = [];
  for await (const piece of stream) received.push(piece);
  told(call, `HTTP/${session.alpnProtocol === 'h2' ? '2.0' : session.alpnProtocol}`, await status, received);
}

let session;
if (which === 'http2') {
  session = http2.connect(`https://${host}`, { ca: fs.readFileSync(process.env.NODE_EXTRA_CA_CERTS) });
  await new Promise((done, fail) => session.on('connect', done).on('error', fail));
}
const call = which === 'fetch' ? withFetch : withHttp2;
await call('get', 'GET', '/get');
await call('post', 'POST', '/echo', 'posted');
await call('upload', 'POST', '/echo', upload());
await call('events', 'GET', '/events');
session?.close();
