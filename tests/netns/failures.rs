//! The failure table of the design, row by row, for HTTP: what happens when something is not as it should be.

use std::time::Duration;

use tests::world::{PAYMENTS, SERVICE_ROOT};
use tests::{Answer, Certificates, Egress, Evidence, Sandbox, Workload, World};

use crate::{BOUND, cut_by_a_block, events, eventually};

const CHARGE: &str = "/v1/charges/42";
const SOON: Duration = Duration::from_secs(20);

fn started(egress: Egress) -> (World, Workload) {
    let mut world = World::started(egress).unwrap();
    let billing = world.billing().unwrap();
    (world, billing)
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{answer:?} {}", answer.text());
    assert_eq!(answer.header("retry-after"), "", "no Retry-After: {answer:?}");
}

#[test]
fn observe_passes_what_is_not_covered_untouched_and_records_it() {
    let mut world = World::started(Egress::Observe).unwrap();
    // No document names it, so the mode is the control plane's; the quickstart's workload says `enforce` itself.
    let mut nightly = world.workload("nightly", Evidence::pod("batch", "nightly")).unwrap();
    nightly.start_proxy().unwrap();
    // Verified by the server's own root alone: whoever had opened the connection would be noticed.
    let url = "https://issuer.demo.test:8443/openid/v1/jwks";
    for family in ["-4", "-6"] {
        let answer = nightly.curl(url).args([family, "--cacert", SERVICE_ROOT]).send().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    eventually(SOON, || !events(&world, "passed").is_empty());
    assert!(nightly.proxy().ready().unwrap());
}

#[test]
fn enforce_refuses_what_is_not_covered() {
    let (_world, billing) = started(Egress::Enforce);
    refused(&billing.curl("https://issuer.demo.test:8443/openid/v1/jwks").send().unwrap(), 403, "CS5005");
    refused(&billing.curl("http://issuer.demo.test:8080/").send().unwrap(), 403, "CS5005");
}

#[test]
fn a_server_that_speaks_first_is_heard_in_observe_and_not_dialled_in_enforce() {
    for (egress, heard) in [(Egress::Observe, true), (Egress::Enforce, false)] {
        let mut world = World::started(egress).unwrap();
        // A workload that no document names: the mode is the control plane's.
        let mut nightly = world.workload("nightly", Evidence::pod("batch", "nightly")).unwrap();
        nightly.start_proxy().unwrap();
        let listen = "exec 3<>/dev/tcp/10.77.0.10/2525 && timeout 8 head -c 12 <&3";
        let output = nightly.application("bash").args(["-c", listen]).output(SOON * 2).unwrap();
        assert_eq!(output.text() == "220 payments", heard, "{egress:?} {output:?}");
        assert_eq!(world.seen().unwrap().greeted == 1, heard, "{egress:?}");
    }
}

#[test]
fn what_is_neither_tls_nor_http_is_reset_in_enforce_and_nothing_is_dialled() {
    let (world, billing) = started(Egress::Enforce);
    let talk = "exec 3<>/dev/tcp/10.77.0.10/2525 && printf '\\001\\002junk' >&3 && cat <&3";
    let output = billing.application("bash").args(["-c", talk]).output(SOON * 2).unwrap();
    assert!(output.stderr.contains("reset by peer"), "{output:?}");
    assert_eq!(world.seen().unwrap().greeted, 0);
    eventually(SOON, || events(&world, "refusal").iter().any(|event| event["code"] == "CS5005"));
}

#[test]
fn without_the_control_plane_what_was_granted_works_and_nothing_new_is_granted() {
    let (mut world, mut billing) = started(Egress::Enforce);
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    world.control().kill9();
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    assert!(billing.proxy().ready().unwrap(), "readiness does not fall with the control plane");
    // Another proxy for the same instance has the last policy, but no credential.
    billing.proxy().kill9();
    billing.proxy().restart().unwrap();
    billing.proxy().wait_until_live().unwrap();
    let call = |billing: &Workload| billing.payments(CHARGE);
    let (_, answer) = billing.eventually(SOON, call, |answer| answer.status == 503).unwrap();
    refused(&answer, 503, "CS6001");
    world.control().restart().unwrap();
    world.control().wait_until_ready().unwrap();
    billing.eventually(SOON * 2, call, |answer| answer.status == 200).unwrap();
    assert_eq!(world.seen().unwrap().requests.iter().filter(|seen| seen.caller.is_none()).count(), 0);
}

#[test]
fn with_the_store_s_disk_full_nothing_new_is_granted_and_it_recovers() {
    let mut world = World::new().unwrap();
    let state = "/run/countersign/private/control/state";
    world.sandbox().private_directory("/run/countersign/private/control", 0).unwrap();
    world.sandbox().private_directory(state, 0).unwrap();
    let inside = |world: &World, script: &str| {
        let shell = world.sandbox().command(tests::Place::Service, tests::As::Root, "sh");
        let output = shell.args(["-ec", script]).output(SOON).unwrap();
        assert!(output.success(), "{output:?}");
    };
    inside(&world, &format!("mount -t tmpfs -o size=4m,mode=0700 tmpfs {state}"));
    world.start_issuer().unwrap();
    world.start_service().unwrap();
    world.start_control(Egress::Enforce).unwrap();
    world.apply_quickstart().unwrap();
    let billing = world.billing().unwrap();
    inside(&world, &format!("dd if=/dev/zero of={state}/full bs=4k 2>/dev/null || true"));
    // Nothing is cached yet: a grant that can't be written down is not handed out.
    let answer = billing.payments(CHARGE).send().unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("retry-after"), "");
    assert_eq!(world.seen().unwrap().count, 0);
    inside(&world, &format!("rm {state}/full"));
    let call = |billing: &Workload| billing.payments(CHARGE);
    billing.eventually(SOON * 4, call, |answer| answer.status == 200).unwrap();
    assert!(world.countersign(&["audit", "verify"]).unwrap().success());
}

#[test]
fn a_certificate_that_does_not_verify_costs_no_byte_of_the_credential() {
    let stranger = Certificates::new("Somebody else").unwrap();
    for (name, leaf) in [
        ("another root", stranger.server(&[PAYMENTS])),
        ("another name", Ok(stranger.server(&["elsewhere.demo.test"]).unwrap())),
    ] {
        let (mut world, billing) = started(Egress::Enforce);
        let leaf = leaf.unwrap();
        present(&mut world, &leaf);
        refused(&billing.payments(CHARGE).send().unwrap(), 502, "CS8001");
        assert_eq!(world.seen().unwrap().count, 0, "{name}");
    }
    let (mut world, billing) = started(Egress::Enforce);
    let expired = world.certificates().expired(&[PAYMENTS]).unwrap();
    present(&mut world, &expired);
    refused(&billing.payments(CHARGE).send().unwrap(), 502, "CS8001");
    let elsewhere = world.certificates().server(&["elsewhere.demo.test"]).unwrap();
    present(&mut world, &elsewhere);
    refused(&billing.payments(CHARGE).send().unwrap(), 502, "CS8001");
    assert_eq!(world.seen().unwrap().count, 0);
}

/// The service starts again with another certificate.
fn present(world: &mut World, leaf: &tests::certificates::Leaf) {
    let directory = format!("{}/{PAYMENTS}", tests::sandbox::PRIVATE);
    world.sandbox().write(format!("{directory}/certificate.pem"), &leaf.certificate).unwrap();
    world.sandbox().write(format!("{directory}/key.pem"), &leaf.key).unwrap();
    world.service().kill9();
    world.service().restart().unwrap();
    world.service().wait_until_ready().unwrap();
}

#[test]
fn an_upstream_that_wants_a_client_certificate_is_told_apart() {
    let (mut world, billing) = started(Egress::Enforce);
    let change = |args: &mut Vec<String>| args.extend(["--client-ca".to_owned(), SERVICE_ROOT.to_owned()]);
    world.service().restart_with(change).unwrap();
    world.service().wait_until_ready().unwrap();
    refused(&billing.payments(CHARGE).send().unwrap(), 502, "CS8002");
    assert_eq!(world.seen().unwrap().count, 0);
}

#[test]
fn an_upstream_that_is_away_or_slow_is_502_or_504() {
    let (mut world, mut billing) = started(Egress::Enforce);
    let change = |args: &mut Vec<String>| args.extend(["--answer-timeout".to_owned(), "1".to_owned()]);
    billing.proxy().restart_with(change).unwrap();
    billing.proxy().wait_until_ready().unwrap();
    refused(&billing.payments("/v1/charges/slow?ms=4000").send().unwrap(), 504, "CS8004");
    world.service().kill9();
    refused(&billing.payments(CHARGE).send().unwrap(), 502, "CS8003");
}

#[test]
fn a_credential_that_the_upstream_no_longer_takes_is_replaced_once_a_minute() {
    let (world, billing) = started(Egress::Enforce);
    let first = billing.payments("/v1/charges/stale?key=a").send().unwrap();
    assert_eq!(first.status, 200, "{first:?}");
    let second = billing.payments("/v1/charges/stale?key=b").send().unwrap();
    assert_eq!(second.status, 401, "at most once a minute: {second:?}");
    assert_eq!(second.code(), "", "the answer is the upstream's");
    let grants: Vec<_> = world.seen().unwrap().requests.into_iter().filter_map(|seen| seen.grant).collect();
    assert_ne!(grants[0], grants[1]);
}

#[test]
fn names_that_disagree_are_misdirected() {
    let (world, billing) = started(Egress::Enforce);
    for version in ["--http1.1", "--http2"] {
        let call = billing.payments(CHARGE).args([version]).header("Host: elsewhere.demo.test");
        refused(&call.send().unwrap(), 421, "CS3006");
        let call = billing.payments(CHARGE).args([version]).header("Host: payments.demo.test:8443");
        refused(&call.send().unwrap(), 421, "CS3006");
    }
    assert_eq!(world.seen().unwrap().count, 0);
}

#[test]
fn every_request_of_a_connection_is_judged_by_its_own_names() {
    let (world, billing) = started(Egress::Enforce);
    let url: &str = &format!("https://{PAYMENTS}{CHARGE}");
    for version in ["--http1.1", "--http2"] {
        let shown = ["-sS", version, "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\\n"];
        let misdirected = [&["--next"], &shown[..], &["-H", "Host: elsewhere.demo.test", url]].concat();
        let args = [&shown[..], &[url], &misdirected, &["--next"], &shown, &[url]].concat();
        let output = billing.application("curl").args(&args).output(SOON * 2).unwrap();
        // One connection for all: the second is refused though the first was good, and the third is good again.
        let lines: Vec<String> = output.text().lines().map(str::to_owned).collect();
        assert_eq!((&lines[0][..5], &lines[1][..3]), ("200 1", "421"), "{version} {output:?}");
        assert_eq!((&lines[1][4..], &lines[2][..3]), ("0", "200"), "{version} {output:?}");
    }
    assert_eq!(world.seen().unwrap().count, 4);
}

#[test]
fn what_the_application_dials_does_not_decide_where_the_credential_goes() {
    let (world, billing) = started(Egress::Enforce);
    // It dials the issuer's address, but asks for the service: the proxy resolves the judged name itself.
    let call = billing.payments(CHARGE).args(["--resolve", "payments.demo.test:443:10.77.0.11"]);
    assert_eq!(call.send().unwrap().status, 200);
    assert_eq!(world.seen().unwrap().count, 1);
}

#[test]
fn malformed_and_oversized_requests_are_refused() {
    let (world, billing) = started(Egress::Enforce);
    let call = || billing.payments(CHARGE).http1();
    refused(&call().args(["-H", "Host;"]).send().unwrap(), 400, "CS3001");
    refused(&call().header("Transfer-Encoding: gzip, chunked").body("x").send().unwrap(), 400, "CS3001");
    let long = format!("x-long: {}", "a".repeat(90_000));
    let answer = call().header(&long).send().unwrap();
    assert_eq!(answer.status, 431, "{answer:?}");
    assert_eq!(call().method("TRACE").send().unwrap().status, 405);
    assert_eq!(world.seen().unwrap().count, 0);
}

#[test]
fn a_header_of_ours_is_never_the_application_s() {
    let (world, billing) = started(Egress::Enforce);
    for version in ["--http1.1", "--http2"] {
        let call = billing.payments(CHARGE).args([version]);
        let call = call.header("Authorization: Bearer standing").header("aUTHORIZATION: Basic c3RhbmRpbmc=");
        assert_eq!(call.send().unwrap().status, 200);
    }
    let seen = world.seen().unwrap();
    assert_eq!(seen.authorised, 2);
    assert!(seen.requests.iter().all(|request| request.authorizations == 1));
    eventually(SOON, || !events(&world, "standing_credential").is_empty());
    let text = format!("{:?}", events(&world, "standing_credential"));
    assert!(!text.contains("standing\"") && !text.contains("c3RhbmRpbmc"), "by fingerprint only: {text}");
}

#[test]
fn a_credential_is_never_sent_in_the_clear() {
    let (world, billing) = started(Egress::Enforce);
    refused(&billing.curl("http://payments.demo.test:443/v1/charges/42").send().unwrap(), 403, "CS3008");
    assert_eq!(world.seen().unwrap().count, 0);
}

#[test]
fn a_covered_name_that_leads_to_a_forbidden_address_is_refused() {
    for special in ["169.254.169.254", "127.0.0.1", "::1"] {
        let world = &mut World::started(Egress::Enforce).unwrap();
        // Before the proxy starts: it reads the hosts file then.
        let hosts = format!(
            "127.0.0.1 localhost\n{special} payments.demo.test\n10.77.0.12 control.demo.test\n\
            10.77.0.11 issuer.demo.test\n"
        );
        world.sandbox().write("/run/countersign/etc/hosts", hosts).unwrap();
        let billing = world.billing().unwrap();
        // The application itself dials an address that is captured.
        let call = billing.payments(CHARGE).args(["--resolve", "payments.demo.test:443:10.77.0.10"]);
        refused(&call.send().unwrap(), 403, "CS1002");
    }
}

#[test]
fn with_the_proxy_dead_nothing_leaves() {
    let (world, mut billing) = started(Egress::Observe);
    billing.proxy().kill9();
    for url in ["https://payments.demo.test/v1/charges/42", "https://issuer.demo.test:8443/openid/v1/jwks"] {
        let answer = billing.curl(url).send().unwrap();
        // curl 7: the connection was refused.
        assert_eq!((answer.status, answer.exit), (0, 7), "{answer:?}");
    }
    assert_eq!(world.seen().unwrap().count, 0);
}

#[test]
fn a_proxy_told_to_stop_finishes_what_is_open() {
    let (world, mut billing) = started(Egress::Enforce);
    let mut slow = billing.steady("slow", "/v1/charges/slow?ms=3000&id={id}", &["--calls", "1"]).unwrap();
    eventually(SOON, || world.seen().unwrap().count == 1);
    assert_eq!(billing.proxy().terminate().unwrap(), 0);
    slow.wait_for(200, 1, SOON).unwrap();
}

#[test]
fn a_draining_proxy_serves_new_connections_until_the_application_has_gone() {
    let (world, mut billing) = started(Egress::Enforce);
    let slow = "/v1/charges/slow?ms=7000&id={id}";
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    let mut held = billing.steady("held", slow, &["--calls", "1"]).unwrap();
    eventually(SOON, || world.seen().unwrap().count == 2);
    billing.proxy().process().signal(rustix::process::Signal::TERM);
    eventually(SOON, || billing.proxy().logs().contains("draining"));
    for version in ["--http1.1", "--http2"] {
        assert_eq!(billing.payments(CHARGE).args([version]).send().unwrap().status, 200, "{version}");
    }
    held.wait_for(200, 1, SOON).unwrap();
    drop(held);
    // The application has gone: a second later the proxy has too, long before its deadline of 30 s.
    assert_eq!(billing.proxy().process().finish(SOON).unwrap(), 0);
}

#[test]
fn at_the_end_of_a_drain_connections_are_told_and_what_is_open_is_finished() {
    for (version, told) in [("--http1.1", "connection: close"), ("--http2", "GOAWAY")] {
        let (world, mut billing) = started(Egress::Enforce);
        let change = |args: &mut Vec<String>| args.extend(["--drain".to_owned(), "1".to_owned()]);
        billing.proxy().restart_with(change).unwrap();
        billing.proxy().wait_until_ready().unwrap();
        let call = |billing: &Workload| billing.payments(CHARGE);
        billing.eventually(SOON, call, |answer| answer.status == 200).unwrap();
        let slow = billing.payments("/v1/charges/slow?ms=4000").args([version, "-v"]);
        let before = world.seen().unwrap().count;
        let answer = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| slow.send().unwrap());
            eventually(SOON, || world.seen().unwrap().count == before + 1);
            billing.proxy().process().signal(rustix::process::Signal::TERM);
            waiting.join().unwrap()
        });
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.error.to_lowercase().contains(&told.to_lowercase()), "{told}: {}", answer.error);
        assert_eq!(billing.proxy().process().finish(SOON).unwrap(), 0);
    }
}

#[test]
fn the_application_is_offered_the_version_that_the_destination_speaks() {
    let (mut world, billing) = started(Egress::Enforce);
    world.service().restart_with(|args| args.extend(["--only".to_owned(), "http1".to_owned()])).unwrap();
    world.service().wait_until_ready().unwrap();
    // curl asks for both; without what was learned it would get the better one.
    let answer = billing.payments(CHARGE).args(["--http2"]).send().unwrap();
    assert_eq!((answer.status, answer.version.as_str()), (200, "HTTP/1.1"), "{answer:?}");
    assert_eq!(answer.json().unwrap()["httpVersion"], "HTTP/1.1");
}

#[test]
fn a_full_spool_stops_calls_that_need_a_credential_and_no_others() {
    let mut world = World::started(Egress::Observe).unwrap();
    let quickstart = std::fs::read_to_string(tests::world::quickstart().join("quickstart.yaml")).unwrap();
    // What is not covered should pass here.
    let observing = quickstart.replace("  egress: enforce\n", "");
    assert_ne!(observing, quickstart);
    world.apply(&observing).unwrap();
    let mut billing = world.workload("billing", Evidence::billing()).unwrap();
    billing.launch_proxy().unwrap();
    let change = |args: &mut Vec<String>| args.extend(["--spool-max-mib".to_owned(), "2".to_owned()]);
    billing.proxy().restart_with(change).unwrap();
    billing.redirect().unwrap();
    billing.proxy().wait_until_ready().unwrap();
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    world.control().kill9();
    // Events can't be delivered; some thousand calls fill the spool.
    let args = ["--pause-ms", "0", "--connections", "8"];
    let mut steady = billing.steady("fill", "/v1/charges/{id}", &args).unwrap();
    steady.wait_for(503, 1, Duration::from_secs(60)).unwrap();
    let calls = steady.finish().unwrap();
    let codes: std::collections::BTreeSet<_> =
        calls.iter().filter(|made| made.status == 503).map(|made| made.note.clone()).collect();
    assert_eq!(codes, std::collections::BTreeSet::from(["CS9001".to_owned()]));
    let url = "https://issuer.demo.test:8443/openid/v1/jwks";
    // The issuer runs still: what is not covered passes.
    assert_eq!(billing.curl(url).args(["--cacert", SERVICE_ROOT]).send().unwrap().status, 200);
    world.control().restart().unwrap();
    world.control().wait_until_ready().unwrap();
    let call = |billing: &Workload| billing.payments(CHARGE);
    billing.eventually(Duration::from_secs(20), call, |answer| answer.status == 200).unwrap();
}

/// A proxy with these settings beside the usual ones.
fn with_settings(world: &mut World, settings: &[&str]) -> Workload {
    let mut billing = world.workload("billing", Evidence::billing()).unwrap();
    billing.launch_proxy().unwrap();
    let more = settings.iter().map(|setting| (*setting).to_owned());
    billing.proxy().restart_with(|args: &mut Vec<String>| args.extend(more)).unwrap();
    billing.redirect().unwrap();
    billing.proxy().wait_until_ready().unwrap();
    billing
}

#[test]
fn what_is_over_our_limits_is_413_429_or_503() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let settings = ["--max-body-mib", "1", "--max-requests", "2", "--max-connections", "6"];
    let billing = with_settings(&mut world, &settings);
    world_file(&billing, &"x".repeat(2 << 20));
    for version in ["--http1.1", "--http2"] {
        let echo = billing.payments("/v1/charges/echo").args([
            version,
            "-H",
            "Expect:",
            "-X",
            "POST",
            "--data-binary",
        ]);
        refused(&echo.args(["@/tmp/upload"]).send().unwrap(), 413, "CS3003");
    }
    // The service asks for the control plane's keys when it first needs them.
    let call = |billing: &Workload| billing.payments(CHARGE);
    billing.eventually(SOON, call, |answer| answer.status == 200).unwrap();
    let slow = "/v1/charges/slow?ms=8000&id={id}";
    let before = world.seen().unwrap().count;
    let mut held = billing.steady("held", slow, &["--connections", "2", "--calls", "1"]).unwrap();
    eventually(SOON, || world.seen().unwrap().count == before + 2);
    let (_, over) = billing.eventually(SOON, call, |answer| answer.status == 429).unwrap();
    refused(&over, 429, "CS3004");
    held.wait_for(200, 2, SOON * 3).unwrap();
    // Connections that are kept open count too.
    let idle = ["--connections", "6", "--calls", "1"];
    let mut idle = billing.steady("idle", "/v1/charges/{id}", &idle).unwrap();
    let (_, over) = billing.eventually(SOON, call, |answer| answer.status == 503).unwrap();
    refused(&over, 503, "CS3005");
    assert!(idle.process().is_alive());
}

#[test]
fn an_issuer_that_refuses_is_403_and_nothing_is_sent() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let quickstart = std::fs::read_to_string(tests::world::quickstart().join("quickstart.yaml")).unwrap();
    let refusing = quickstart.replace("team: payments", "team: \"{kubernetes.nowhere}\"");
    assert_ne!(refusing, quickstart);
    world.apply(&refusing).unwrap();
    let billing = world.billing().unwrap();
    refused(&billing.payments(CHARGE).send().unwrap(), 403, "CS6002");
    assert_eq!(world.seen().unwrap().count, 0);
}

#[test]
fn with_on_full_drop_calls_go_on_and_the_gap_is_an_event() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = with_settings(&mut world, &["--spool-max-mib", "2", "--audit-on-full", "drop"]);
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    world.control().kill9();
    let args = ["--pause-ms", "0", "--connections", "8"];
    let mut steady = billing.steady("fill", "/v1/charges/{id}", &args).unwrap();
    steady.wait_for(200, 9000, Duration::from_secs(90)).unwrap();
    let calls = steady.finish().unwrap();
    assert!(calls.iter().all(|made| made.status == 200), "{:?}", tests::workload::tally(&calls));
    world.control().restart().unwrap();
    world.control().wait_until_ready().unwrap();
    eventually(SOON * 4, || {
        let _ = billing.payments(CHARGE).send();
        !events(&world, "gap").is_empty()
    });
    assert!(world.countersign(&["audit", "verify"]).unwrap().success());
}

#[test]
fn an_open_answer_is_cut_within_a_second_of_a_block() {
    let (world, billing) = started(Egress::Enforce);
    for version in ["--http1.1", "--http2"] {
        let drip =
            billing.payments("/v1/charges/drip?chunks=250&every_ms=100&size=100").args([version, "-N"]);
        let drip = || drip.within(Duration::from_secs(30)).send().unwrap();
        let (cut, answer) = cut_by_a_block(&world, drip);
        assert!(cut < BOUND, "{version}: {cut:?}");
        assert_ne!(answer.exit, 0, "the answer was not whole: {answer:?}");
    }
}

#[test]
fn bodies_stream_both_ways() {
    let (_world, billing) = started(Egress::Enforce);
    for version in ["--http1.1", "--http2"] {
        let large = billing.payments("/v1/charges/large?bytes=20000000").args([version]).send().unwrap();
        assert_eq!((large.status, large.body.len()), (200, 20_000_000));
        // The first bytes come while the upstream still drips: 300 chunks take 30 s.
        let drip = billing
            .payments("/v1/charges/drip?chunks=300&every_ms=100&size=100")
            .args([version, "-N"])
            .within(Duration::from_secs(6))
            .send()
            .unwrap();
        assert_eq!(drip.status, 200);
        assert!((100..30_000).contains(&drip.body.len()), "{} bytes within 6 s", drip.body.len());
        let sent = "0123456789".repeat(100_000);
        world_file(&billing, &sent);
        let echo = billing.payments("/v1/charges/echo").args([version, "-X", "POST", "--data-binary"]);
        let echo = echo.args(["@/tmp/upload"]).send().unwrap();
        assert_eq!((echo.status, echo.body == sent.as_bytes()), (200, true));
        let trailers = billing.payments("/v1/charges/trailers").args([version, "--raw", "-v"]);
        let trailers = trailers.header("TE: trailers");
        let trailers = trailers.send().unwrap();
        // With --raw and -v, curl shows the trailers' fields, of HTTP/1.1 and of HTTP/2.
        let shown = trailers.text() + &trailers.error;
        assert_eq!((trailers.status, shown.contains("x-checksum: 0badcafe")), (200, true), "{shown}");
    }
}

/// A file that the application can read.
fn world_file(billing: &Workload, content: &str) {
    let path = "/tmp/upload";
    let sandbox: &Sandbox = billing.sandbox();
    sandbox.write(path, content).unwrap();
}
