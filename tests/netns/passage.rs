//! What is not HTTP: carried untouched where nothing covers it, refused with its own code where something does.

use std::time::Duration;

use serde_json::Value;
use tests::sandbox::{HOME, PRIVATE, Process};
use tests::world::SERVICE_ROOT;
use tests::{As, Egress, Evidence, Mode, Place, Sandbox, Workload, World};

use crate::{events, eventually};

const SOON: Duration = Duration::from_secs(20);

/// The server's name, where nothing covers it.
const FREE: &str = "queue.demo.test";

/// `tests/clients/stream-server.py`, under three names.
fn start_server(world: &World) -> Process {
    let sandbox = world.sandbox();
    let names = [(FREE, 30), ("covered.demo.test", 31), ("pinned.demo.test", 32), ("raw.demo.test", 33)];
    for (name, host) in names {
        sandbox.add_host(name, host).unwrap();
    }
    let leaf = world.certificates().server(&names.map(|(name, _)| name)).unwrap();
    let directory = format!("{PRIVATE}/queue");
    sandbox.private_directory(&directory, 0).unwrap();
    sandbox.write(format!("{directory}/certificate.pem"), leaf.certificate).unwrap();
    sandbox.write(format!("{directory}/key.pem"), leaf.key).unwrap();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/stream-server.py");
    sandbox.write("/tmp/stream-server.py", std::fs::read(program).unwrap()).unwrap();
    let server = sandbox
        .command(Place::Service, As::Root, "python3")
        .args([
            "/tmp/stream-server.py",
            &format!("{directory}/certificate.pem"),
            &format!("{directory}/key.pem"),
        ])
        .start_with_lifeline("queue", &sandbox.outside(format!("{HOME}/logs/queue.log")))
        .unwrap();
    eventually(SOON, || server.logs().contains("ready"));
    server
}

fn talk(workload: &Workload, conversations: &[&str]) -> Value {
    workload.script("streams.py", &[&[SERVICE_ROOT], conversations].concat()).unwrap()
}

fn accepted(server: &Process, port: u16) -> usize {
    let line = format!("{port} accepted");
    server.logs().lines().filter(|said| **said == line).count()
}

#[test]
fn what_nothing_covers_passes_untouched() {
    for sandbox in [Sandbox::new().unwrap(), Sandbox::rootless().unwrap()] {
        let rootless = sandbox.mode() == Mode::Rootless;
        let mut world = World::within(sandbox).unwrap();
        world.start_issuer().unwrap();
        world.start_service().unwrap();
        world.start_control(Egress::Observe).unwrap();
        world.apply_quickstart().unwrap();
        let server = start_server(&world);
        // No document names it, so the mode is the control plane's.
        let mut nightly = world.workload("nightly", Evidence::pod("batch", "nightly")).unwrap();
        nightly.start_proxy().unwrap();
        for host in ["10.77.0.30", "fd77::1e"] {
            let at = |name: &str, port: u16| format!("{name}={host}/{port}");
            let conversations = [
                at("half_close", 7001),
                at("nothing_to_say", 7001),
                at("bulk", 7002),
                at("listen_first", 7003),
                at("think_first", 7004),
                at("in_pieces", 7004),
                at("words", 7004),
                at("broken", 7005),
                // Nobody listens there.
                at("raw", 7009),
                at("silent", 7009),
                format!("queue_tls={FREE}/7006"),
            ];
            let before = accepted(&server, 7004);
            let found = talk(&nightly, &conversations.each_ref().map(String::as_str));
            assert_eq!(found["half_close"], true, "{found}");
            assert_eq!(found["nothing_to_say"], "0", "{found}");
            assert_eq!(found["bulk"]["same"], true, "{found}");
            let said = format!("7002 {}", found["bulk"]["said"].as_str().unwrap());
            eventually(SOON, || server.logs().contains(&said));
            assert_eq!(found["listen_first"]["greeting"], "220 hello\r\n", "{found}");
            assert_eq!(found["listen_first"]["echo"], true, "{found}");
            assert!(found["listen_first"]["waited"].as_f64().unwrap() < 10.0, "it need not wait: {found}");
            assert_eq!(
                (&found["think_first"], &found["in_pieces"], &found["words"]),
                (&true.into(), &true.into(), &true.into())
            );
            assert_eq!(accepted(&server, 7004) - before, 3, "the server sees each connection once");
            assert_eq!(found["broken"], "reset", "what broke off does not look whole: {found}");
            assert_eq!((&found["raw"], &found["silent"]), (&"reset".into(), &"reset".into()), "{found}");
            // By the server's own certificate: its root is all that this client trusts.
            let tls = &found["queue_tls"];
            assert_eq!((&tls["alpn"], &tls["echo"]), (&"acme-queue/1".into(), &true.into()), "{found}");
            if rootless {
                break;
            }
        }
        eventually(SOON, || {
            let passed = events(&world, "passed");
            passed.iter().any(|event| event["name"] == FREE && event["protocol"] == "tls")
                && passed
                    .iter()
                    .any(|event| event["address"] == "10.77.0.30:7003" && event["protocol"] == "tcp")
        });
    }
}

const DOCUMENTS: &str = r"
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: { name: billing, namespace: payments }
spec:
  selector: { kubernetes.serviceaccount: billing }
  egress: observe
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: covered, namespace: payments }
spec: { hosts: [covered.demo.test], addresses: [10.77.0.31, 'fd77::1f'], ports: [7003, 7004, 7006] }
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: pinned, namespace: payments }
spec: { hosts: [pinned.demo.test], addresses: [10.77.0.32, 'fd77::20'], ports: [7003, 7006], tls: passthrough }
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: raw, namespace: payments }
spec: { addresses: [10.77.0.33, 'fd77::21'], ports: [7003, 7004, 7006], protocol: tcp }
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: closed, namespace: payments }
spec: { addresses: [10.77.0.33, 'fd77::21'], ports: [7001, 7005], protocol: tcp }
---
apiVersion: countersign.dev/v1alpha1
kind: AccessPolicy
metadata: { name: billing-covered, namespace: payments }
spec: { workload: billing, destination: covered, allow: [{}] }
---
apiVersion: countersign.dev/v1alpha1
kind: AccessPolicy
metadata: { name: billing-pinned, namespace: payments }
spec: { workload: billing, destination: pinned, allow: [{}] }
---
apiVersion: countersign.dev/v1alpha1
kind: AccessPolicy
metadata: { name: billing-raw, namespace: payments }
spec: { workload: billing, destination: raw, allow: [{}] }
---
# Requests only: a bare connection is not among them.
apiVersion: countersign.dev/v1alpha1
kind: AccessPolicy
metadata: { name: billing-closed, namespace: payments }
spec: { workload: billing, destination: closed, allow: [{ methods: [GET] }] }
";

#[test]
fn to_a_covered_destination_it_is_refused_unless_the_document_says_otherwise() {
    let mut world = World::started(Egress::Observe).unwrap();
    world.apply(DOCUMENTS).unwrap_or_else(|error| panic!("{error:#}"));
    let server = start_server(&world);
    let billing = world.billing().unwrap();
    let refused = |conversation: &str| {
        let found = talk(&billing, &[conversation]);
        let name = conversation.split('=').next().unwrap();
        assert_eq!(
            found[name], "reset",
            "nothing of ours is written, not even an alert: {conversation} {found}"
        );
    };
    let codes = |code: &str| {
        let refusals = events(&world, "refusal");
        refusals.iter().filter(|event| event["code"] == code && event["action"] == "connect").count()
    };
    // Covered, and opened: what is not HTTP can't be.
    refused("raw=10.77.0.31/7004");
    refused("raw=fd77::1f/7004");
    refused("queue_tls=covered.demo.test/7006");
    eventually(SOON, || codes("CS3007") == 3);
    // `tls: passthrough` is about TLS.
    refused("raw=10.77.0.32/7003");
    eventually(SOON, || codes("CS3007") == 4);
    // The policy that covers it allows no bare connection: it is not even dialled.
    refused("raw=10.77.0.33/7001");
    refused("raw=10.77.0.33/7005");
    eventually(SOON, || codes("CS5001") == 2);
    for port in [7001, 7003, 7004, 7005, 7006] {
        assert_eq!(accepted(&server, port), 0, "port {port}: {}", server.logs());
    }

    let found = talk(
        &billing,
        &["queue_tls=pinned.demo.test/7006", "listen_first=10.77.0.33/7003", "in_pieces=fd77::21/7004"],
    );
    assert_eq!(found["queue_tls"]["alpn"], "acme-queue/1", "by the server's own certificate: {found}");
    assert_eq!(
        (&found["listen_first"]["echo"], &found["in_pieces"]),
        (&true.into(), &true.into()),
        "{found}"
    );
    let over_tls = talk(&billing, &["queue_tls=raw.demo.test/7006"]);
    assert_eq!(over_tls["queue_tls"]["echo"], true, "`protocol: tcp` is about both: {over_tls}");
    // Policy and audit see the connection, and nothing in it.
    for name in ["payments/pinned", "payments/raw"] {
        let carried = || {
            let (intents, outcomes) = (events(&world, "intent"), events(&world, "outcome"));
            let intent = intents.into_iter().find(|event| event["destination"] == name)?;
            let outcome = outcomes.into_iter().find(|outcome| outcome["decision"] == intent["decision"])?;
            Some((intent, outcome))
        };
        eventually(SOON, || carried().is_some());
        let (intent, outcome) = carried().unwrap();
        assert_eq!(
            (&intent["action"], &intent["method"], &intent["path"]),
            (&"connect".into(), &"".into(), &"".into())
        );
        assert_eq!(outcome["result"], "completed", "{intent} {outcome}");
        assert!(
            outcome["bytes_up"].as_u64() > Some(0) && outcome["bytes_down"].as_u64() > Some(0),
            "{outcome}"
        );
    }
}

#[test]
fn a_clienthello_that_comes_slowly_is_judged_all_the_same() {
    let mut world = World::started(Egress::Observe).unwrap();
    // What is covered is covered in `observe` too.
    let quickstart = std::fs::read_to_string(tests::world::quickstart().join("quickstart.yaml")).unwrap();
    world.apply(&quickstart.replace("  egress: enforce\n", "")).unwrap();
    let mut billing = world.workload("billing", Evidence::billing()).unwrap();
    billing.launch_proxy().unwrap();
    let change = |args: &mut Vec<String>| args.extend(["--header-timeout".to_owned(), "4".to_owned()]);
    billing.proxy().restart_with(change).unwrap();
    billing.redirect().unwrap();
    billing.proxy().wait_until_ready().unwrap();
    let hello = |pause: &str, stop: &str| {
        let output = billing
            .application(tests::edge::python())
            .args(["-c", SLOW_HELLO, pause, stop])
            .output(Duration::from_secs(20))
            .unwrap();
        output.text().trim().to_owned()
    };
    // The connection may wait for its server after 50 ms; half a ClientHello does not make it one that passes.
    assert_eq!(hello("0.2", "no"), "200");
    assert_eq!(hello("0", "half"), "reset");
    eventually(SOON, || events(&world, "refusal").iter().any(|event| event["code"] == "CS2001"));
    // Nor does saying nothing at first.
    assert_eq!(hello("5", "first"), "200");
    assert!(world.seen().unwrap().requests.iter().all(|request| request.caller.is_some()));
}

/// A ClientHello in two halves with a pause between them, or in one after a pause, or only half of it.
const SLOW_HELLO: &str = "
import socket, ssl, sys, os, time
pause, stop = float(sys.argv[1]), sys.argv[2]
context = ssl.create_default_context(cafile=os.environ['SSL_CERT_FILE'])
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = context.wrap_bio(incoming, outgoing, server_hostname='payments.demo.test')
connection = socket.create_connection(('payments.demo.test', 443), timeout=10)
def step(call):
    while True:
        try:
            result = call()
            connection.sendall(outgoing.read())
            return result
        except ssl.SSLWantReadError:
            said = outgoing.read()
            global hello
            if said and hello:
                hello = False
                if stop == 'first':
                    time.sleep(pause); connection.sendall(said)
                else:
                    connection.sendall(said[:len(said) // 2])
                    if stop == 'half':
                        connection.recv(1); return None
                    time.sleep(pause); connection.sendall(said[len(said) // 2:])
            elif said:
                connection.sendall(said)
            got = connection.recv(1 << 16)
            if not got: raise EOFError
            incoming.write(got)
hello = True
try:
    step(tls.do_handshake)
    step(lambda: tls.write(b'GET /v1/charges/42 HTTP/1.1\\r\\nhost: payments.demo.test\\r\\nconnection: close\\r\\n\\r\\n'))
    print(step(lambda: tls.read(12)).decode().split()[1])
except ConnectionResetError:
    print('reset')
except Exception as error:
    print(repr(error))
";
