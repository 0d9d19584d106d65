// An application that is bytes: `raw-client.mjs FILE`, where FILE is a list of cases as JSON. All run at once, each on a
// connection of its own; the last line tells what came back on each.
//
//   { port, secure, bytes, after }      HTTP/1: these bytes (latin1), and `after` 300 ms later; `fin` closes our side then
//   { port, fields, data, more }        HTTP/2: one request with these fields, as they are, and this body; `more` fields
//                                       after the body are trailers; `open` leaves it unfinished; `reset` resets it
//   { …, every }                        these bytes too, ten times a second, for as long as the connection is there
//   { …, when }                         `after`, `fin` and `reset` wait until this file is there, not for a time
//   { …, answers }                      how many final answers of HTTP/1 are awaited; 1 unless it says so
//   { …, quiet }                        milliseconds without a byte, once what is awaited is there, after which the case is
//                                       over; 700 unless it says so
import fs from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';

const HOST = 'edge.demo.test';
const ca = fs.readFileSync(process.env.NODE_EXTRA_CA_CERTS);
const cases = JSON.parse(fs.readFileSync(process.argv[2]));

const frame = (type, flags, stream, payload) => {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
};

// RFC 7541 §6.2.2: literals without indexing, names and values as they are.
function block(fields) {
  const text = (value) => {
    const bytes = Buffer.from(value, 'latin1');
    const length = bytes.length < 127 ? [bytes.length] : [127, ((bytes.length - 127) & 127) | 128, (bytes.length - 127) >> 7];
    return Buffer.concat([Buffer.from(length), bytes]);
  };
  return Buffer.concat(fields.map(([name, value]) => Buffer.concat([Buffer.from([0]), text(name), text(value)])));
}

function request({ fields, data, more, reset, open }) {
  const parts = [Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), frame(4, 0, 0, Buffer.alloc(0))];
  const ended = data === undefined && more === undefined && reset === undefined && !open;
  parts.push(frame(1, ended ? 5 : 4, 1, block(fields)));
  if (data !== undefined) parts.push(frame(0, more === undefined ? 1 : 0, 1, Buffer.from(data, 'latin1')));
  if (more !== undefined) parts.push(frame(1, 5, 1, block(more)));
  return Buffer.concat(parts);
}

// How long a case waits for what it awaits: a busy machine takes its time.
const PATIENCE = 20000;

// The status in a block of ours: the first field (RFC 7541 §6.1, appendices A and B for digits).
function status(payload) {
  let at = 0;
  while ((payload[at] & 0xe0) === 0x20) at += 1;
  const indexed = { 0x88: 200, 0x89: 204, 0x8a: 206, 0x8b: 304, 0x8c: 400, 0x8d: 404, 0x8e: 500 }[payload[at]];
  if (indexed) return indexed;
  const length = payload[at + 1] & 0x7f;
  const value = payload.subarray(at + 2, at + 2 + length);
  if (!(payload[at + 1] & 0x80)) return Number(value.toString());
  const bits = [...value].map((byte) => byte.toString(2).padStart(8, '0')).join('');
  let digits = '';
  for (let i = 0; digits.length < 3; ) {
    const five = parseInt(bits.slice(i, i + 5), 2);
    if (five <= 2) { digits += five; i += 5; } else { digits += parseInt(bits.slice(i, i + 6), 2) - 0b011001 + 3; i += 6; }
  }
  return Number(digits);
}

function frames(bytes) {
  const told = { statuses: [], body: '', ended: false };
  for (let at = 0; bytes.length >= at + 9; ) {
    const length = bytes.readUIntBE(at, 3);
    const [type, flags, stream] = [bytes[at + 3], bytes[at + 4], bytes.readUInt32BE(at + 5)];
    const payload = bytes.subarray(at + 9, at + 9 + length);
    at += 9 + length;
    if (type === 1 && !told.body && stream === 1) told.statuses.push(status(payload));
    if (type === 0) told.body += payload.toString('latin1');
    if (type === 3) told.reset = payload.readUInt32BE(0);
    if (type > 9) told.unknown = type;
    if (type === 7) told.goaway = payload.readUInt32BE(4);
    if ((type === 0 || type === 1) && flags & 1) told.ended = true;
  }
  return told;
}

// Whether what a case awaits has come.
function complete(one, bytes) {
  if (one.fields === undefined) {
    const finals = bytes.toString('latin1').match(/HTTP\/1\.[01] [2-5]\d\d /g) ?? [];
    return finals.length >= (one.answers ?? 1);
  }
  const told = frames(bytes);
  return told.ended || told.reset !== undefined || told.goaway !== undefined;
}

function run(one) {
  return new Promise((resolve) => {
    const http2 = one.fields !== undefined;
    const chunks = [];
    const told = { closed: false };
    let timer;
    let acted = false;
    const done = () => {
      clearTimeout(timer);
      socket.destroy();
      const bytes = Buffer.concat(chunks);
      told.length = bytes.length;
      if (http2) Object.assign(told, frames(bytes));
      else told.bytes = bytes.subarray(0, 20000).toString('latin1');
      resolve(told);
    };
    const wait = () => {
      clearTimeout(timer);
      const over = acted || (one.every === undefined && complete(one, Buffer.concat(chunks)));
      timer = setTimeout(done, over ? (one.quiet ?? 700) : PATIENCE);
    };
    const act = () => {
      if (one.reset !== undefined) socket.write(frame(3, 0, 1, Buffer.from([0, 0, 0, one.reset])));
      if (one.after != null) socket.write(Buffer.from(one.after, 'latin1'));
      if (one.fin) socket.end();
      // Who leaves awaits no answer.
      acted = one.reset !== undefined || Boolean(one.fin);
      wait();
    };
    const begin = () => {
      socket.write(http2 ? request(one) : Buffer.from(one.bytes, 'latin1'));
      if (one.every !== undefined) {
        const more = setInterval(() => (socket.writable ? socket.write(Buffer.from(one.every, 'latin1')) : clearInterval(more)), 100);
      }
      const acts = one.reset !== undefined || one.after != null || one.fin;
      if (acts && one.when === undefined) setTimeout(act, 300);
      if (acts && one.when !== undefined) {
        const look = () => (fs.existsSync(one.when) ? act() : setTimeout(look, 20));
        look();
      }
      wait();
    };
    const options = { host: HOST, port: one.port };
    const secure = { ...options, ca, servername: one.name ?? HOST, ALPNProtocols: [http2 ? 'h2' : 'http/1.1'] };
    const socket = one.secure === false ? net.connect(options, begin) : tls.connect(secure, begin);
    // An answer's end does not take our own side with it.
    socket.allowHalfOpen = true;
    socket.on('data', (bytes) => { chunks.push(bytes); wait(); });
    socket.on('end', () => { told.closed = true; done(); });
    socket.on('close', () => { told.closed = true; done(); });
    socket.on('error', (error) => { told.error = error.code; });
  });
}

console.log(JSON.stringify(await Promise.all(cases.map(run))));
process.exit(0);
