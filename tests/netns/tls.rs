//! TLS on both sides, as real peers speak it: what a ClientHello may look like, what servers are refused for, what is
//! shown to them, and who can get at the instance's CA.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::sandbox::PROGRAMS;
use tests::tls_server::{BARE, GIVEN, INSIDE, OUTER, TLS, WRONG};
use tests::world::{PAYMENTS, SERVICE_ROOT};
use tests::{Answer, As, Daemon, Egress, Evidence, Mode, Place, Workload, World};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(30);

fn started() -> (World, Daemon, Workload) {
    let mut world = World::started(Egress::Enforce).unwrap();
    let servers = world.start_tls_servers().unwrap();
    let billing = world.billing().unwrap();
    (world, servers, billing)
}

#[track_caller]
fn refused(answer: &Answer, code: &str, because: &str) {
    assert_eq!((answer.status, answer.code()), (502, code), "{answer:?} {}", answer.text());
    assert!(answer.text().contains(because), "{}", answer.text());
}

/// What `tls-client` saw.
fn hello(billing: &Workload, args: &[&str]) -> Result<Value, String> {
    let url = format!("https://{PAYMENTS}/v1/charges/42");
    let client = billing.application(&format!("{PROGRAMS}/tls-client"));
    let output = client.args(["--url", &url, "--root", &billing.bundle()]).args(args).output(LONG).unwrap();
    serde_json::from_slice(&output.stdout).map_err(|_| output.stderr)
}

#[test]
fn a_client_hello_is_read_in_any_records_and_segments() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    let cases: [&[&str]; 8] = [
        &[],
        &["--segment", "1"],
        &["--record", "1"],
        &["--record", "1", "--segment", "7"],
        &["--record", "100", "--segment", "3"],
        &["--filler", "20000"],
        &["--filler", "20000", "--record", "512", "--segment", "999"],
        &["--tls12", "--record", "2", "--segment", "5"],
    ];
    for args in cases {
        let told = hello(&billing, args).unwrap_or_else(|said| panic!("{args:?}: {said}"));
        assert_eq!(told["status"], 200, "{args:?}: {told}");
        if !args.contains(&"--tls12") {
            assert_eq!(told["group"], "X25519MLKEM768", "{told}");
            assert!(told["bytes"].as_u64().unwrap() > 1200, "the hybrid share is large: {told}");
        }
    }
    assert_eq!(world.seen().unwrap().authorised, cases.len() as u64);
}

#[test]
fn what_looks_like_ech_works_and_a_connection_without_a_name_is_not_opened() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    for args in [&["--grease-ech"][..], &["--grease-ech", "--record", "1"]] {
        let told = hello(&billing, args).unwrap();
        assert_eq!((&told["status"], &told["version"]), (&200.into(), &"TLSv1_3".into()), "{told}");
    }
    let before = world.seen().unwrap().count;
    let said = hello(&billing, &["--no-sni"]).unwrap_err();
    assert!(!said.is_empty());
    assert_eq!(world.seen().unwrap().count, before, "nothing without a name reaches the service");
}

#[test]
fn a_server_with_less_than_we_accept_is_refused_by_what_it_lacks() {
    let (world, _servers, billing) = started();
    for (port, because) in [
        (8452, "no cipher in common"),
        (8453, "no cipher in common"),
        (8454, "neither TLS 1.3 nor TLS 1.2"),
        (8455, "does not speak TLS on this port"),
    ] {
        refused(&billing.tls_server(TLS, port).send().unwrap(), "CS8007", because);
    }
    assert_eq!(world.tls_servers_seen().unwrap()["requests"], 0);
    let good = billing.tls_server(TLS, 8456).send().unwrap().json().unwrap();
    assert_eq!(good["version"], "TLSv1.3", "{good}");
}

#[test]
fn an_application_with_less_than_we_accept_gets_no_handshake() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    let handshake = |args: &[&str]| {
        let target = ["s_client", "-brief", "-connect", &format!("{PAYMENTS}:443"), "-servername", PAYMENTS];
        let openssl = billing.application("openssl").args(target).args(args);
        openssl.output(LONG).unwrap().success()
    };
    for enough in [&["-tls1_3"][..], &["-tls1_2"], &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]] {
        assert!(handshake(enough), "{enough:?}");
    }
    for less in [
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA"],
        &["-tls1_2", "-cipher", "AES128-GCM-SHA256:DHE-RSA-AES128-GCM-SHA256"],
    ] {
        assert!(!handshake(less), "{less:?}");
    }
}

#[test]
fn upstreams_are_verified_by_the_roots_of_the_system_the_operator_or_the_destination() {
    let (world, _servers, mut billing) = started();
    // The destination's own, and those alone.
    assert_eq!(billing.tls_server(GIVEN, 8457).send().unwrap().status, 200);
    refused(&billing.tls_server(GIVEN, 8456).send().unwrap(), "CS8001", "does not verify");
    refused(&billing.tls_server(TLS, 8457).send().unwrap(), "CS8001", "does not verify");
    // The operator's; without them nobody believes the server, until the system does.
    assert_eq!(billing.tls_server(TLS, 8456).send().unwrap().status, 200);
    let without = |args: &mut Vec<String>| {
        let at = args.iter().position(|arg| arg == "--roots").unwrap();
        drop(args.drain(at..at + 2));
    };
    billing.proxy().restart_with(without).unwrap();
    billing.proxy().wait_until_ready().unwrap();
    refused(&billing.tls_server(TLS, 8456).send().unwrap(), "CS8001", "does not verify");
    let store = "/etc/ssl/certs/ca-certificates.crt";
    let add = format!("cat {store} {SERVICE_ROOT} > /tmp/store && mount --bind /tmp/store {store}");
    world.sandbox().script(Place::Service, &add).unwrap();
    billing.proxy().restart_with(|_| ()).unwrap();
    billing.proxy().wait_until_ready().unwrap();
    assert_eq!(billing.tls_server(TLS, 8456).send().unwrap().status, 200);
}

#[test]
fn another_name_is_sent_and_verified_where_the_destination_says_so() {
    let (world, _servers, billing) = started();
    let told = billing.tls_server(OUTER, 8456).send().unwrap().json().unwrap();
    assert_eq!(told["sni"], INSIDE, "{told}");
    // It is that name alone: one that the certificate has does not help.
    refused(&billing.tls_server(WRONG, 8456).send().unwrap(), "CS8001", "elsewhere.demo.test");
    let seen = world.tls_servers_seen().unwrap();
    assert_eq!((&seen["requests"], &seen["credentials"]), (&1.into(), &1.into()), "{seen}");
}

#[test]
fn a_server_that_asks_is_shown_the_workload_s_certificate_if_the_destination_says_so() {
    let (world, _servers, billing) = started();
    for (port, version) in [(8450, "TLSv1.3"), (8451, "TLSv1.2")] {
        let told = billing.tls_server(TLS, port).send().unwrap().json().unwrap();
        assert_eq!((&told["authorized"], &told["version"]), (&true.into(), &version.into()), "{told}");
        assert_eq!(told["peer"], "URI:spiffe://demo/ns/payments/sa/billing", "{told}");
    }
    let shown = world.tls_servers_seen().unwrap()["requests"].clone();
    for port in [8450, 8451] {
        refused(&billing.tls_server(BARE, port).send().unwrap(), "CS8002", "asks for a client certificate");
    }
    assert_eq!(world.tls_servers_seen().unwrap()["requests"], shown, "nothing came without a certificate");
}

#[test]
fn a_renewed_certificate_gets_connections_of_its_own() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let short = |args: &mut Vec<String>| args.extend(["--svid-lifetime".to_owned(), "60".to_owned()]);
    world.control().restart_with(short).unwrap();
    world.control().wait_until_ready().unwrap();
    let _servers = world.start_tls_servers().unwrap();
    let billing = world.billing().unwrap();
    let call = || billing.tls_server(TLS, 8450).send().unwrap().json().unwrap();
    let first = call();
    assert_eq!(call()["connection"], first["connection"], "as long as it is the same, so is the connection");
    let deadline = Instant::now() + Duration::from_secs(45);
    let renewed = loop {
        let told = call();
        if told["serial"] != first["serial"] {
            break told;
        }
        assert_eq!(told["connection"], first["connection"], "{told}");
        assert!(Instant::now() < deadline, "the certificate was not renewed");
        std::thread::sleep(Duration::from_millis(500));
    };
    assert_ne!(renewed["connection"], first["connection"]);
    assert_eq!((&renewed["resumed"], &renewed["peer"]), (&false.into(), &first["peer"]), "{renewed}");
}

#[test]
fn nobody_gets_at_the_ca_s_key() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let mut billing = world.billing().unwrap();
    billing.payments("/v1/charges/42").send().unwrap();
    let state = format!("{}/state", billing.directory());
    let key = std::fs::read(world.sandbox().outside(format!("{state}/ca.key"))).unwrap();
    // As the proxy's own UID, beside it: what a process that shares its namespace and its user can try.
    let proxy = match world.mode() {
        Mode::Root => As::Proxy(1337),
        Mode::Rootless => As::Proxy(0),
    };
    let pid = billing.proxy().process().pid().unwrap();
    let inside = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let inside =
        inside.lines().find(|line| line.starts_with("NSpid:")).unwrap().split('\t').next_back().unwrap();
    let script = format!(
        "for file in mem environ maps auxv; do head -c 1 /proc/{inside}/$file > /dev/null 2>&1 && echo read $file; done; \
         ls /proc/{inside}/fd > /dev/null 2>&1 && echo read fd; \
         grep 'core file' /proc/{inside}/limits"
    );
    let command = world.sandbox().command(billing.place(), proxy, "sh");
    let output = command.args(["-c", &script]).output(SOON).unwrap();
    assert!(!output.text().contains("read "), "{output:?}");
    assert!(output.text().contains("Max core file size        0"), "{output:?}");
    // As another user, who sees the directory's path: an application's own view does not even have it.
    let (read, list) = (format!("cat {state}/ca.key"), format!("ls {state}"));
    for command in [&read, &list] {
        let other = As::Application(10_001);
        let output = world.sandbox().command(billing.place(), other, "sh").args(["-c", command]).output(SOON);
        assert!(!output.unwrap().success());
    }
    // What the proxy says and writes for others.
    let told = "curl -s http://127.0.0.1:15020/metrics; curl -sk https://localhost:15021/";
    let told = billing.bare_application("sh").args(["-c", told]).output(SOON).unwrap();
    assert!(told.text().contains("countersign_connections_open") && told.text().contains("trusts the proxy"));
    let mut public = told.stdout;
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    for file in [billing.bundle(), billing.bundle().replace(".pem", ".p12")] {
        public.extend(std::fs::read(world.sandbox().outside(file)).unwrap());
    }
    public.extend([environment, arguments, billing.proxy().logs().into_bytes()].concat());
    // PKCS#8 of P-256: the private number is in its middle.
    let secret = &key[36..68];
    assert!(!public.windows(secret.len()).any(|window| window == secret));
    assert!(!String::from_utf8_lossy(&public).contains("PRIVATE KEY"));
}

#[test]
fn the_ca_of_one_instance_is_useless_in_another() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    let mut second = world.workload("second", Evidence::billing()).unwrap();
    second.start_proxy().unwrap();
    second.redirect().unwrap();
    assert_eq!(billing.payments("/v1/charges/42").send().unwrap().status, 200);
    let stolen = billing.bundle();
    let answer = second.payments("/v1/charges/42").args(["--cacert", &stolen]).send().unwrap();
    assert_eq!((answer.status, answer.exit), (0, 60), "{answer:?}");
    assert!(second.proxy().metric("countersign_tls_untrusted_total", "alert").unwrap() >= 1.0);
}
