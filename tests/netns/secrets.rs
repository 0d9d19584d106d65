//! Where a secret may not be (cases 21 and 26), and what whoever breaks things on purpose gets (case 24).

use std::time::Duration;

use tests::world::SERVICE_ROOT;
use tests::{As, Egress, Evidence, Place, World, search};

const CHARGE: &str = "/v1/charges/42";
const SOON: Duration = Duration::from_secs(20);
const ADMIN: &str = "http://127.0.0.1:15020";

#[test]
fn nothing_secret_is_said_at_trace_level() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let trace = |args: &mut Vec<String>| args.extend(["--log".to_owned(), "trace".to_owned()]);
    world.control().restart_with(trace).unwrap();
    world.control().wait_until_ready().unwrap();
    let mut billing = world.billing_with(&["--log", "trace"]).unwrap();
    let standing = "canary-standing-5d7f1c20";
    let queried = "canary-query-90aa11be";
    for version in ["--http1.1", "--http2"] {
        let call = |path: &str| billing.payments(path).args([version]);
        let sent = call(CHARGE).header(&format!("Authorization: Bearer {standing}"));
        assert_eq!(sent.send().unwrap().status, 200);
        assert_eq!(call(&format!("{CHARGE}?token={queried}")).send().unwrap().status, 200);
        assert_eq!(call("/v1/charges/mirror?how=header").send().unwrap().status, 200);
        assert_eq!(call("/v1/charges/echo").method("POST").body("body").send().unwrap().status, 200);
        assert_eq!(call(CHARGE).method("DELETE").send().unwrap().status, 403);
        assert_eq!(call("/v1/charges/stale?key=a").send().unwrap().status, 200);
    }
    // Over HTTP/1.1 alone: curl sends no such header over HTTP/2.
    let oversized = format!("Authorization: Bearer {standing}{}", "x".repeat(90_000));
    assert_eq!(billing.payments(CHARGE).http1().header(&oversized).send().unwrap().status, 431);
    let grant = world.seen().unwrap().requests.last().and_then(|seen| seen.grant.clone()).unwrap();
    assert!(world.countersign(&["revoke", &format!("grant/{grant}")]).unwrap().success());
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    let mut forger = world.workload("forger", Evidence::billing().forged()).unwrap();
    forger.launch_proxy().unwrap();
    forger.proxy().restart_with(trace).unwrap();
    crate::eventually(SOON * 2, || {
        crate::events(&world, "attested").iter().any(|event| !event["refused"].is_null())
    });

    let signature = |token: &str| token.rsplit('.').next().unwrap().trim().to_owned();
    let admin = world.sandbox().read("/run/countersign/private/control/admin-token").unwrap();
    let mut secrets: Vec<String> =
        world.seen().unwrap().requests.into_iter().filter_map(|seen| seen.signature).collect();
    assert!(secrets.len() >= 10, "{} credentials were used", secrets.len());
    secrets.extend([signature(&billing.token().unwrap()), signature(&forger.token().unwrap())]);
    secrets.extend([admin.trim().to_owned(), standing.to_owned(), queried.to_owned()]);
    let needles: Vec<&[u8]> = secrets.iter().map(String::as_bytes).collect();

    let logs = [billing.proxy().logs(), forger.proxy().logs(), world.control().logs()];
    assert!(logs.iter().all(|log| log.contains("TRACE")), "they were at trace level");
    let said = |args: &[&str]| world.countersign(args).map(|output| output.text() + &output.stderr).unwrap();
    let shown = [
        said(&["audit", "-o", "jsonl"]),
        said(&["get", "grants", "-o", "json"]),
        said(&["get", "callers", "-o", "json"]),
        said(&["explain", "last", "-o", "json"]),
        said(&["status", "-o", "json"]),
    ];
    let metrics = |place: Place<'_>, url: &str| {
        let curl = world.sandbox().command(place, As::Root, "curl").args(["-sS", url]);
        curl.output(SOON).unwrap().text()
    };
    let metrics = [
        metrics(billing.place(), &format!("{ADMIN}/metrics")),
        metrics(Place::Service, "http://127.0.0.1:8442/metrics"),
    ];
    assert!(metrics.iter().all(|text| text.contains("countersign_")));
    for text in logs.iter().chain(&shown).chain(&metrics) {
        for (number, needle) in needles.iter().enumerate() {
            let found = memchr::memmem::find(text.as_bytes(), needle);
            let around = found
                .map(|at| String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(300)..at]).into_owned());
            assert_eq!(around, None, "secret {number}");
        }
    }
    for pid in [billing.proxy().process().pid().unwrap(), world.control().process().pid().unwrap()] {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(!needles.iter().any(|needle| memchr::memmem::find(&environment, needle).is_some()));
    }
    // On disk nothing has a credential: not the spool, not the database. The state directory has the proxy's own keys.
    for directory in
        [format!("{}/spool", billing.directory()), "/run/countersign/private/control/state".to_owned()]
    {
        let found = search::files(&world.sandbox().outside(directory), &needles).unwrap();
        assert_eq!(found, Vec::<String>::new());
    }
}

#[test]
fn at_the_admin_port_an_application_finds_health_and_metrics_and_no_names() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let mut billing = world.billing().unwrap();
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    let ask =
        |path: &str, method: &str| billing.curl(&format!("{ADMIN}{path}")).method(method).send().unwrap();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(ask(path, "GET").status, 200, "{path}");
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            assert_eq!(ask(path, method).status, 405, "{method} {path}");
        }
    }
    for path in [
        "/",
        "/log",
        "/logging",
        "/debug",
        "/debug/pprof",
        "/config",
        "/config_dump",
        "/certs",
        "/quitquitquit",
        "/metrics/..",
    ] {
        let call = billing.curl(&format!("{ADMIN}{path}")).args(["--path-as-is"]);
        assert_eq!(call.send().unwrap().status, 404, "{path}");
        assert!(matches!(ask(path, "POST").status, 404 | 405), "{path}");
    }
    let text = ask("/metrics", "GET").text();
    for name in ["payments", "billing", "token", "charges", "spiffe", "10.77.0."] {
        let shows = text.lines().filter(|line| !line.starts_with('#')).any(|line| line.contains(name));
        assert!(!shows, "`{name}` is in the metrics");
    }
    let _ = billing.curl(&format!("{ADMIN}/log?level=trace")).method("POST").send();
    assert!(!billing.proxy().logs().contains("log level changed"));
}

#[test]
fn a_client_that_gives_handshakes_up_is_not_passed_untouched() {
    let mut world = World::started(Egress::Observe).unwrap();
    let billing = world.billing().unwrap();
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    let became = billing.flood(&["aborts", "--count", "200"]).unwrap();
    assert_eq!(became.get("a handshake"), Some(&200), "{became:?}");
    // Not even then, not even in `observe`: curl 60, the certificate is still the instance's.
    let untouched = billing.payments(CHARGE).args(["--cacert", SERVICE_ROOT]).send().unwrap();
    assert_eq!((untouched.status, untouched.exit), (0, 60), "{untouched:?}");
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    let seen = world.seen().unwrap();
    assert_eq!((seen.count, seen.authorised), (2, 2), "no request without its credential");
}

#[test]
fn a_control_plane_that_hangs_or_loses_its_store_costs_no_request_its_credential() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    world.control().process().signal(rustix::process::Signal::STOP);
    let answer = billing.payments(CHARGE).send().unwrap();
    assert_eq!((answer.status, answer.code()), (503, "CS6001"), "it hangs: {answer:?}");
    world.control().process().signal(rustix::process::Signal::CONT);
    let call = |billing: &tests::Workload| billing.payments(CHARGE);
    billing.eventually(SOON * 2, call, |answer| answer.status == 200).unwrap();
    let before = world.seen().unwrap().count;
    let grant = world.seen().unwrap().requests.last().and_then(|seen| seen.grant.clone()).unwrap();
    assert!(world.countersign(&["revoke", &format!("grant/{grant}")]).unwrap().success());
    // The store is gone under it: nothing can be recorded, so nothing is granted.
    let state = world.sandbox().outside("/run/countersign/private/control/state");
    for name in ["control.db", "control.db-wal", "control.db-shm"] {
        if let Ok(file) = std::fs::OpenOptions::new().write(true).open(state.join(name)) {
            file.set_len(0).unwrap();
        }
    }
    let answer = billing.payments(CHARGE).send().unwrap();
    assert!(answer.status == 503 && answer.code().starts_with("CS6"), "{answer:?}");
    let seen = world.seen().unwrap();
    assert_eq!(seen.count, before);
    assert!(seen.requests.iter().all(|request| request.caller.is_some()));
}
