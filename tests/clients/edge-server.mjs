// A server with the corners of HTTP that the payments service does not have: WebSockets, interim answers, refusals before
// the body, streams that are refused, answers that are not valid. Node's own HTTP, so that it is a real peer.
//
//   8446  TLS, HTTP/2 and HTTP/1.1     8447  TLS, answers byte by byte as the path says     8448  TLS, HTTP/2 only
//   8449  TLS, HTTP/2 with two streams at a time                                            9091  what was seen (plain, loopback)
import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import tls from 'node:tls';

const [, , directory] = process.argv;
const identity = { key: fs.readFileSync(`${directory}/key.pem`), cert: fs.readFileSync(`${directory}/certificate.pem`) };
const seen = { requests: [], sessions: 0, raw: '' };
const refused = new Set();

const accept = (key) =>
  crypto.createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
const authorised = (headers) => /^Bearer ey/.test(headers.authorization ?? '');

function note(request) {
  seen.requests.push({ method: request.method, path: request.url, version: request.httpVersion, authorised: authorised(request.headers) });
}

function answer(request, response) {
  note(request);
  const url = new URL(request.url, 'https://edge.demo.test');
  const pause = Number(url.searchParams.get('pause') ?? 1500);
  switch (url.pathname) {
    case '/early':
      response.writeEarlyHints({ link: '</style.css>; rel=preload' });
      return void setTimeout(() => response.end('after the hints'), 300);
    case '/echo':
      response.writeHead(200, { 'content-type': request.headers['content-type'] ?? 'text/plain' });
      return void request.pipe(response);
    case '/ignores-expect':
      return void request.resume().on('end', () => response.end('read without asking'));
    case '/alt-svc':
      return void response.writeHead(200, { 'alt-svc': 'h3=":443"' }).end('stay');
    case '/refused-once':
      if (!refused.has(url.search) && response.stream) {
        refused.add(url.search);
        const refuse = () => response.stream.close(http2.constants.NGHTTP2_REFUSED_STREAM);
        // One with a body once something of it has come.
        return void (request.method === 'POST' ? request.once('data', refuse) : refuse());
      }
      return void response.end('second time');
    case '/denied':
      // The first time with what came, which a service should not do; then not at all.
      if (refused.has(url.search)) return void (response.stream?.session ?? request.socket).destroy();
      refused.add(url.search);
      return void response.writeHead(401, { 'content-type': 'text/plain' }).end(`not ${request.headers.authorization}`);
    case '/hold':
      return void setTimeout(() => response.end('held'), pause);
    case '/events':
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write('data: one\n\n');
      return void setTimeout(() => response.end('data: two\n\n'), pause);
    case '/small': {
      // Many small messages to whoever does not read them.
      response.writeHead(200, { 'content-type': 'application/octet-stream' });
      for (let i = 0; i < Number(url.searchParams.get('count')); i += 1) response.write('0123456789');
      return void response.end();
    }
    default:
      response.writeHead(200, { 'content-type': 'application/json' });
      return void response.end(JSON.stringify({ version: request.httpVersion, method: request.method, path: request.url, headers: request.headers }));
  }
}

function expect(request, response) {
  if (request.url === '/refuses-body') {
    note(request);
    response.writeHead(401, { 'content-type': 'text/plain' });
    return void response.end('no need to send it');
  }
  if (request.url !== '/ignores-expect') response.writeContinue();
  return answer(request, response);
}

function upgrade(request, socket, head) {
  note(request);
  if (request.url !== '/ws') {
    socket.on('data', (bytes) => (seen.raw += bytes)).on('error', () => {});
    return void setTimeout(() => socket.write('HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno'), 200);
  }
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: ${accept(request.headers['sec-websocket-key'])}\r\n\r\n`);
  socket.write(JSON.stringify({ over: '1.1', authorised: authorised(request.headers) }) + '\n');
  if (head.length) socket.write(head);
  socket.pipe(socket);
}

function connect(request, response) {
  note(request);
  const { stream } = response;
  if (request.url !== '/ws') {
    // Refused after a while, so that what came before it is seen.
    stream.on('data', (bytes) => (seen.raw += bytes)).on('error', () => {});
    return void setTimeout(() => { stream.respond({ ':status': 403 }); stream.end('no'); }, 200);
  }
  stream.respond({ ':status': 200 });
  stream.write(JSON.stringify({ over: '2.0', authorised: authorised(request.headers) }) + '\n');
  stream.pipe(stream);
}

// Whole answers, or what a broken server takes for them.
const HINTS =
  'HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nAlt-Svc: h3=":443"\r\nConnection: x-hop\r\nX-Hop: a\r\n\r\n' +
  'HTTP/1.1 103 Early Hints\r\nLink: </script.js>; rel=preload\r\n\r\n';
const HINTED = 'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nafter the hints';

const BROKEN = {
  '/two-lengths': 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc',
  '/length-list': 'HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nabc',
  '/both-framings': 'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n',
  '/unknown-coding': 'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc',
  '/folded': 'HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 0\r\n\r\n',
  '/nul': 'HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n',
  '/no-answer': '',
  '/garbage': 'these are not the bytes\r\n\r\n',
  '/unasked-switch': 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: anything\r\nConnection: upgrade\r\n\r\n',
  '/long-header': `HTTP/1.1 200 OK\r\nX-A: ${'a'.repeat(600000)}\r\nContent-Length: 0\r\n\r\n`,
  '/old': 'HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok',
  '/alt-svc': 'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"\r\nContent-Length: 4\r\n\r\nstay',
  '/early': HINTS,
  '/early-at-once': HINTS + HINTED,
  '/custom-reason': 'HTTP/1.1 200 Very Fine\r\nX-MiXed-Case: Kept\r\nContent-Length: 2\r\n\r\nok',
};

function broken(socket) {
  let head = '';
  socket.on('error', () => {});
  socket.on('data', (bytes) => {
    head += bytes;
    if (!head.includes('\r\n\r\n')) return;
    seen.raw += head;
    const [, path] = head.split(' ');
    head = '';
    if (BROKEN[path] === undefined) return void socket.end('HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n');
    socket.write(BROKEN[path]);
    if (path === '/early') setTimeout(() => socket.write(HINTED), 300);
    if (!['/old', '/custom-reason', '/alt-svc', '/early', '/early-at-once'].includes(path)) socket.end();
  });
}

function secure(port, options, extra = {}) {
  const server = http2.createSecureServer({ ...identity, ...options }, answer);
  server.on('checkContinue', expect).on('upgrade', upgrade).on('connect', connect);
  server.on('session', () => (seen.sessions += 1)).on('sessionError', () => {}).on('error', fail);
  server.listen({ port, host: '::', ...extra });
}

function fail(error) {
  console.error(error);
  process.exit(1);
}

const settings = { enableConnectProtocol: true };
secure(8446, { allowHTTP1: true, settings });
secure(8448, { settings });
secure(8449, { settings: { ...settings, maxConcurrentStreams: 2 } });
tls.createServer({ ...identity, ALPNProtocols: ['http/1.1'] }, broken).on('error', fail).listen(8447, '::');
http
  .createServer((request, response) => {
    if (request.method === 'DELETE') Object.assign(seen, { requests: [], sessions: 0, raw: '' });
    response.end(JSON.stringify(seen));
  })
  .on('error', fail)
  .listen(9091, '127.0.0.1');
