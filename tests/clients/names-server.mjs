// Services under any name, that tell by which name they were called and with what: for tests of names and addresses.
//
//   9443, 9444  TLS, HTTP/2 and HTTP/1.1     9080, 9081  the same in the clear, HTTP/2 by prior knowledge
//   9025        speaks first                 9092        what was seen (plain, loopback)
import fs from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import net from 'node:net';

const [, , directory] = process.argv;
const identity = { key: fs.readFileSync(`${directory}/key.pem`), cert: fs.readFileSync(`${directory}/certificate.pem`) };
let seen = [];
let opened = 0;

function answer(request, response) {
  const socket = request.socket ?? request.stream.session.socket;
  const told = {
    method: request.method,
    target: request.url,
    host: request.headers[':authority'] ?? request.headers.host ?? '',
    sni: socket.servername || '',
    address: socket.localAddress.replace('::ffff:', ''),
    port: socket.localPort,
    from: socket.remotePort,
    opened,
    version: request.httpVersion,
    credential: /^Bearer ey/.test(request.headers.authorization ?? ''),
    headers: request.headers,
  };
  seen.push(told);
  const url = new URL(request.url, 'http://x');
  if (url.pathname === '/redirect') {
    return void response.writeHead(302, { location: url.searchParams.get('to') }).end('elsewhere');
  }
  if (url.pathname === '/echo') return void request.pipe(response);
  if (request.method === 'CONNECT') {
    response.writeHead(200);
    return void request.pipe(response);
  }
  if (url.pathname === '/trailers') {
    response.write('a body');
    response.addTrailers({ 'x-end': 'reached' });
    return void response.end();
  }
  response.writeHead(200, { 'content-type': 'application/json' });
  return void response.end(JSON.stringify(told));
}

function fail(error) {
  console.error(error);
  process.exit(1);
}

for (const port of [9443, 9444]) {
  const server = http2.createSecureServer({ ...identity, allowHTTP1: true }, answer);
  server.on('sessionError', () => {}).on('error', fail).listen(port, '::');
}
const [clear1, clear2] = [http.createServer(answer), http2.createServer({ settings: { enableConnectProtocol: true } }, answer)];
clear2.on('sessionError', () => {}).on('connect', answer);
// A tunnel by CONNECT or by Upgrade, with a word of ours before the echo.
const tunnel = (head) => (request, socket) => {
  seen.push({ method: request.method, target: request.url, host: request.headers.host, credential: false, headers: request.headers });
  socket.on('error', () => {});
  socket.write(`${head}\r\n\r\nbegun `);
  socket.pipe(socket);
};
clear1.on('connect', tunnel('HTTP/1.1 200 Established'));
clear1.on('upgrade', tunnel('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: words/1'));
for (const port of [9080, 9081]) {
  const server = net.createServer((socket) => {
    opened += 1;
    socket.on('error', () => {});
    socket.once('readable', () => {
      const first = socket.read();
      if (first === null) return;
      socket.unshift(first);
      (first.subarray(0, 4).toString() === 'PRI ' ? clear2 : clear1).emit('connection', socket);
    });
  });
  server.on('error', fail).listen(port, '::');
}
net.createServer((socket) => {
  socket.on('error', () => {});
  socket.write('220 names\r\n');
  socket.pipe(socket);
}).on('error', fail).listen(9025, '::');
http.createServer((request, response) => {
  response.end(JSON.stringify(seen));
  if (request.method === 'DELETE') seen = [];
}).on('error', fail).listen(9092, '127.0.0.1');
