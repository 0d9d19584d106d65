// A server that is bytes: it notes what it gets as it came, and answers with the bytes that it is told.
//
//   8461  TLS, http/1.1: `/answer/end/B64` and `/answer/keep/B64` are answered with those bytes (base64url), else 200 `ok`;
//         `/early` is answered at once, and what comes after its head is counted
//   8462  TLS, h2: each stream is answered by the next plan, else by 200 `ok`
//   9092  plain, loopback: GET tells what was seen, PUT sets the plans for h2, DELETE forgets
//
// A plan is a list of frames `[type, flags, payload in hex]`, or `{ "small": N, "size": S }`: an answer of N messages, each
// in a DATA frame of its own, as the windows allow; `{ "endless": true }` sends for as long as it may; `{ "mute": true }` never answers.
import fs from 'node:fs';
import http from 'node:http';
import tls from 'node:tls';

const [, , directory] = process.argv;
const identity = { key: fs.readFileSync(`${directory}/key.pem`), cert: fs.readFileSync(`${directory}/certificate.pem`) };
const seen = { connections: 0, requests: [], sent: 0, received: 0, ended: [], resets: [] };
let plans = [];

const latin = (bytes) => bytes.toString('latin1');
const field = (head, name) => new RegExp(`\\r\\n${name}: *([^\\r]*)`, 'i').exec(head)?.[1];

// The end of the request that begins the text; undefined if it is not there yet. What comes from a proxy that rewrites
// is read without mercy for anything else.
function endOf(text) {
  const head = text.indexOf('\r\n\r\n') + 4;
  if (head < 4) return undefined;
  const length = field(text.slice(0, head), 'content-length');
  if (length !== undefined) return text.length >= head + Number(length) ? head + Number(length) : undefined;
  if (field(text.slice(0, head), 'transfer-encoding') === undefined) return head;
  const last = /(^|\r\n)0\r\n([^\r\n]+\r\n)*\r\n/.exec(text.slice(head));
  return last ? head + last.index + last[0].length : undefined;
}

function http1(socket) {
  const connection = (seen.connections += 1);
  let text = '';
  let early = false;
  socket.on('error', () => {});
  socket.on('close', () => seen.ended.push(connection));
  socket.on('data', (bytes) => {
    text += latin(bytes);
    const path = text.split(' ')[1] ?? '';
    if (path.startsWith('/endless') && text.includes('\r\n\r\n')) return endless(socket, path);
    if (path.startsWith('/early')) {
      const head = text.indexOf('\r\n\r\n') + 4;
      if (head < 4) return;
      if (!early) { early = true; note(connection, text, head); socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'); }
      seen.received += text.length - head;
      text = text.slice(0, head);
      return;
    }
    if (path.startsWith('/stop')) {
      // It takes the head and nothing else.
      if (text.includes('\r\n\r\n')) { note(connection, text, text.indexOf('\r\n\r\n') + 4); socket.pause(); }
      return;
    }
    for (let end = endOf(text); end !== undefined; end = endOf(text)) {
      note(connection, text, end);
      const [, target] = text.split(' ');
      text = text.slice(end);
      answer(socket, target);
    }
  });
}

function note(connection, text, end) {
  const head = text.indexOf('\r\n\r\n') + 4;
  seen.requests.push({ connection, head: text.slice(0, head), body: text.slice(head, end) });
}

function answer(socket, target) {
  const [, kind, how, bytes] = target.split('/');
  if (kind === 'silent') return;
  if (kind !== 'answer') return void socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
  socket.write(Buffer.from(bytes, 'base64url'));
  if (how === 'end') socket.end();
}

function endless(socket, path) {
  const chunk = Buffer.concat([Buffer.from('4000\r\n'), Buffer.alloc(0x4000, 'x'), Buffer.from('\r\n')]);
  socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n');
  const go = () => { while (!socket.destroyed && socket.write(chunk)) seen.sent += 0x4000; };
  socket.on('drain', () => { seen.sent += 0x4000; go(); });
  go();
}

const frame = (type, flags, stream, payload) => {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
};

function http2(socket) {
  const connection = (seen.connections += 1);
  let bytes = Buffer.alloc(0);
  let greeted = false;
  // Windows of the connection, of a new stream, and what waits for one: streams with messages left.
  const windows = { connection: 65535, initial: 65535, streams: [] };
  socket.on('error', () => {});
  socket.on('close', () => seen.ended.push(connection));
  socket.write(frame(4, 0, 0, Buffer.alloc(0)));
  socket.on('data', (more) => {
    bytes = Buffer.concat([bytes, more]);
    if (!greeted) {
      if (bytes.length < 24) return;
      greeted = true;
      bytes = bytes.subarray(24);
    }
    while (bytes.length >= 9 && bytes.length >= 9 + bytes.readUIntBE(0, 3)) {
      const length = bytes.readUIntBE(0, 3);
      const [type, flags, stream] = [bytes[3], bytes[4], bytes.readUInt32BE(5) & 0x7fffffff];
      const payload = bytes.subarray(9, 9 + length);
      bytes = bytes.subarray(9 + length);
      if (type === 4 && !(flags & 1)) {
        for (let at = 0; at < length; at += 6) if (payload.readUInt16BE(at) === 4) windows.initial = payload.readUInt32BE(at + 2);
        socket.write(frame(4, 1, 0, Buffer.alloc(0)));
      }
      if (type === 8) {
        const given = payload.readUInt32BE(0);
        if (stream === 0) windows.connection += given;
        else for (const one of windows.streams) if (one.stream === stream) one.window += given;
        send(socket, windows);
      }
      if (type === 6 && !(flags & 1)) socket.write(frame(6, 1, 0, payload));
      if (type === 3) seen.resets.push(payload.readUInt32BE(0));
      if (type === 0) seen.received += length;
      if (type === 1) {
        seen.requests.push({ connection, stream });
        play(socket, stream, plans.shift(), windows);
      }
    }
  });
}

const OK = Buffer.from([0x88]);

// Sends of each stream what the windows allow.
function send(socket, windows) {
  for (const one of windows.streams) {
    const count = Math.min(one.left, Math.floor(Math.min(one.window, windows.connection) / one.size));
    if (count <= 0) continue;
    const message = frame(0, 0, one.stream, Buffer.alloc(one.size, 'm'));
    for (let sent = 0; sent < count; sent += 1000) socket.write(Buffer.concat(Array(Math.min(1000, count - sent)).fill(message)));
    one.left -= count;
    one.window -= count * one.size;
    windows.connection -= count * one.size;
  }
}

function play(socket, stream, plan, windows) {
  if (plan === undefined) {
    socket.write(frame(1, 4, stream, OK));
    return void socket.write(frame(0, 1, stream, Buffer.from('ok')));
  }
  if (plan.mute) return;
  if (plan.small !== undefined) {
    socket.write(frame(1, 4, stream, OK));
    windows.streams.push({ stream, left: plan.small, size: plan.size, window: windows.initial });
    return send(socket, windows);
  }
  for (const [type, flags, payload, on] of plan) socket.write(frame(type, flags, on ?? stream, Buffer.from(payload, 'hex')));
}

const fail = (error) => { console.error(error); process.exit(1); };
tls.createServer({ ...identity, ALPNProtocols: ['http/1.1'] }, http1).on('tlsClientError', () => {}).on('error', fail).listen(8461, '::');
tls.createServer({ ...identity, ALPNProtocols: ['h2'] }, http2).on('tlsClientError', () => {}).on('error', fail).listen(8462, '::');
http
  .createServer((request, response) => {
    let body = '';
    request.on('data', (text) => (body += text));
    request.on('end', () => {
      if (request.method === 'PUT') plans = JSON.parse(body);
      if (request.method === 'DELETE') Object.assign(seen, { connections: 0, requests: [], sent: 0, received: 0, ended: [], resets: [] });
      response.end(JSON.stringify(seen));
    });
  })
  .on('error', fail)
  .listen(9092, '127.0.0.1');
