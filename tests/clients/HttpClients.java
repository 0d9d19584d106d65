// What a program of Java's HttpClient does and reads, as JSON lines: `java HttpClients.java 1|2 HOST:PORT`; or what one
// call comes to, as a program that shows its error would print it: `java HttpClients.java get URL`.

import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class HttpClients {
    public static void main(String[] args) throws Exception {
        if (args[0].equals("get")) {
            var answer = client(HttpClient.Version.HTTP_1_1)
                    .send(HttpRequest.newBuilder(URI.create(args[1])).build(), BodyHandlers.ofString());
            System.out.print(answer.body());
            System.exit(answer.statusCode() < 400 ? 0 : 1);
        }
        var client = client(args[0].equals("2") ? HttpClient.Version.HTTP_2 : HttpClient.Version.HTTP_1_1);
        var at = "https://" + args[1];
        var from = "?java-" + args[0];
        call(client, "get", HttpRequest.newBuilder(URI.create(at + "/get" + from)));
        var echo = URI.create(at + "/echo" + from);
        call(client, "post", HttpRequest.newBuilder(echo).POST(BodyPublishers.ofString("posted")));
        // A stream has no length: chunks on HTTP/1.1.
        InputStream pieces = new ByteArrayInputStream("one two three".getBytes(StandardCharsets.UTF_8));
        call(client, "upload", HttpRequest.newBuilder(echo).POST(BodyPublishers.ofInputStream(() -> pieces)));
        call(client, "events", HttpRequest.newBuilder(URI.create(at + "/events" + from)));
        System.exit(0);
    }

    static void call(HttpClient client, String name, HttpRequest.Builder request) throws Exception {
        var answer = client.send(request.timeout(Duration.ofSeconds(15)).build(), BodyHandlers.ofInputStream());
        var body = answer.body();
        var buffer = new byte[4096];
        int read = body.read(buffer);
        var first = new String(buffer, 0, Math.max(read, 0), StandardCharsets.UTF_8);
        var text = first + new String(body.readAllBytes(), StandardCharsets.UTF_8);
        var version = answer.version() == HttpClient.Version.HTTP_2 ? "HTTP/2.0" : "HTTP/1.1";
        System.out.printf("{\"call\":%s,\"version\":%s,\"status\":%d,\"first\":%s,\"text\":%s}%n",
                json(name), json(version), answer.statusCode(), json(first), json(text));
    }

    static HttpClient client(HttpClient.Version version) throws Exception {
        var builder = HttpClient.newBuilder().version(version).connectTimeout(Duration.ofSeconds(15));
        // Java reads no PEM by itself; where no trust store was named, this program reads the bundle.
        if (System.getProperty("javax.net.ssl.trustStore") == null) builder.sslContext(trusting(System.getenv("SSL_CERT_FILE")));
        return builder.build();
    }

    static SSLContext trusting(String bundle) throws Exception {
        var store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        int number = 0;
        try (var pem = Files.newInputStream(Path.of(bundle))) {
            for (var certificate : CertificateFactory.getInstance("X.509").generateCertificates(pem)) {
                store.setCertificateEntry("root-" + number++, certificate);
            }
        }
        var managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(store);
        var context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        return context;
    }

    static String json(String text) {
        var quoted = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') quoted.append('\\').append(c);
            else if (c < ' ') quoted.append(String.format("\\u%04x", (int) c));
            else quoted.append(c);
        }
        return quoted.append('"').toString();
    }
}
