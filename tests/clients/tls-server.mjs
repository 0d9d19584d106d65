// Servers that differ in their TLS, for one name on many ports. Each answers a request with what its handshake showed.
//
//   8450  wants a client certificate of the control plane's CA     8451  the same, TLS 1.2 only     8456  TLS as it should be
//   8452  TLS 1.2 with RSA key exchange only     8453  TLS 1.2 with ECDHE and CBC only     8454  TLS 1.1 only     8455  no TLS
//   8457  TLS with a certificate of another authority
//   9092  how many connections and requests there were (plain, loopback)
//
//   node tls-server.mjs DIRECTORY CONTROL-CA
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';

const [, , directory, control] = process.argv;
const read = (name) => fs.readFileSync(`${directory}/${name}`);
const identity = { key: read('key.pem'), cert: read('certificate.pem') };
const rsa = { key: read('rsa-key.pem'), cert: read('rsa-certificate.pem') };
const other = { key: read('other-key.pem'), cert: read('other-certificate.pem') };
const seen = { requests: 0, connections: {}, credentials: 0 };

function answer(request, response) {
  const { socket } = request;
  seen.requests += 1;
  if (request.headers.authorization) seen.credentials += 1;
  const peer = socket.getPeerCertificate?.();
  response.setHeader('content-type', 'application/json');
  response.end(
    JSON.stringify({
      version: socket.getProtocol?.(),
      cipher: socket.getCipher?.().name,
      sni: socket.servername,
      resumed: socket.isSessionReused?.(),
      peer: peer?.subjectaltname,
      serial: peer?.serialNumber,
      authorized: socket.authorized,
      connection: socket.number,
    }),
  );
}

function fail(error) {
  console.error(error);
  process.exit(1);
}

function serve(port, options) {
  const server = options ? https.createServer({ ...identity, ...options }, answer) : http.createServer(answer);
  seen.connections[port] = 0;
  server.on(options ? 'secureConnection' : 'connection', (socket) => {
    seen.connections[port] += 1;
    socket.number = seen.connections[port];
  });
  server.on('tlsClientError', () => {}).on('error', fail).listen(port, '::');
}

const mutual = { ca: fs.readFileSync(control), requestCert: true, rejectUnauthorized: true };
const only12 = { minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' };
serve(8450, mutual);
serve(8451, { ...mutual, ...only12 });
serve(8452, { ...rsa, ...only12, ciphers: 'AES128-GCM-SHA256:AES256-GCM-SHA384:AES128-SHA' });
serve(8453, { ...only12, ciphers: 'ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-ECDSA-AES128-SHA256' });
serve(8454, { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'ALL:@SECLEVEL=0' });
serve(8455, null);
serve(8456, {});
serve(8457, other);
http
  .createServer((_, response) => response.end(JSON.stringify(seen)))
  .on('error', fail)
  .listen(9092, '127.0.0.1');
