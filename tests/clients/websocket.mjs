// Opens a WebSocket by hand and says as JSON what came back: `websocket.mjs 1|2 PORT PATH [hold]`.
// Bytes after the handshake are echoed by the server as they are: this is about carrying, not about frames.
import crypto from 'node:crypto';
import fs from 'node:fs';
import http2 from 'node:http2';
import tls from 'node:tls';

const [, , version, port, path, mode] = process.argv;
const host = 'edge.demo.test';
const ca = fs.readFileSync(process.env.NODE_EXTRA_CA_CERTS);
const told = { status: 0, bytes: '', ended: false };
const began = Date.now();

function done() {
  told.after = Date.now() - began;
  console.log(JSON.stringify(told));
  process.exit(0);
}

function talk(stream) {
  let received = '';
  stream.setEncoding('utf8');
  stream.on('data', (text) => {
    received += text;
    told.bytes = received;
    // The first line is the server's; then our own words come back.
    if (mode !== 'hold' && received.includes('\n') && received.endsWith('echo me')) stream.end();
  });
  stream.on('end', () => { told.ended = true; done(); });
  stream.on('close', done);
  stream.on('error', (error) => { told.error = error.code; done(); });
  stream.write('echo me');
}

if (version === '2') {
  const session = http2.connect(`https://${host}:${port}`, { ca });
  session.on('error', (error) => { told.error = error.code; done(); });
  session.on('remoteSettings', (settings) => {
    told.connectProtocol = settings.enableConnectProtocol;
    const stream = session.request({ ':method': 'CONNECT', ':protocol': 'websocket', ':path': path, ':scheme': 'https', ':authority': `${host}:${port}`, 'sec-websocket-version': '13' }, { endStream: false });
    stream.on('response', (headers) => {
      told.status = headers[':status'];
      told.accept = headers['sec-websocket-accept'];
      told.code = headers['countersign-code'];
      if (told.status !== 200) done();
    });
    talk(stream);
  });
} else {
  const key = crypto.randomBytes(16).toString('base64');
  const socket = tls.connect({ host, port, ca, servername: host, ALPNProtocols: ['http/1.1'] }, () => {
    socket.write(`GET ${path} HTTP/1.1\r\nHost: ${host}:${port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: ${key}\r\nSec-WebSocket-Version: 13\r\n\r\n`);
    // What must never be forwarded if the upgrade is refused comes in the same breath.
    if (mode === 'eager') socket.write('EAGER BYTES\r\n\r\n');
    let head = '';
    socket.on('data', function first(bytes) {
      head += bytes.toString('latin1');
      const end = head.indexOf('\r\n\r\n');
      if (end < 0) return;
      socket.off('data', first);
      told.status = Number(head.split(' ')[1]);
      told.head = head.slice(0, end);
      const expected = crypto.createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
      told.accept = head.toLowerCase().includes(`sec-websocket-accept: ${expected.toLowerCase()}`);
      if (told.status !== 101) {
        if (mode !== 'eager') return done();
        socket.on('data', (more) => { told.bytes += more.toString('latin1'); });
        told.bytes = head.slice(end + 4);
        return void socket.on('close', done);
      }
      const rest = head.slice(end + 4);
      if (rest) socket.unshift(Buffer.from(rest, 'latin1'));
      talk(socket);
    });
  });
  socket.on('error', (error) => { told.error = error.code; done(); });
}
setTimeout(done, 30000);
