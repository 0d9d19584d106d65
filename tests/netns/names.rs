//! Names and addresses: which name decides, which address is dialled, and what is refused on the way (docs/names.md).

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::names::{COVERED, MEMBER, NAMES, Names, OTHER, PLAIN, TTL, covering, zone};
use tests::world::SERVICE_ROOT;
use tests::{Answer, As, Call, Egress, Workload, World};

use crate::{events, eventually};

const SOON: Duration = Duration::from_secs(20);

fn started(egress: &str) -> (World, Names, Workload) {
    started_with(egress, &[])
}

fn started_with(egress: &str, settings: &[&str]) -> (World, Names, Workload) {
    let mut world = World::started(Egress::Observe).unwrap();
    let names = world.start_names(egress).unwrap();
    let mut billing = world.billing().unwrap();
    billing.start_explicit(settings).unwrap();
    (world, names, billing)
}

/// The address of a name that docs/names.md knows by a short one.
fn address(name: &str) -> String {
    let host = NAMES.iter().find(|(known, _)| *known == full(name)).unwrap().1;
    format!("10.77.0.{host}")
}

fn full(name: &str) -> &'static str {
    match name {
        "covered" => COVERED,
        "insecure" => PLAIN,
        "other" => OTHER,
        _ => panic!("docs/names.md names {name}, which the test does not know"),
    }
}

/// The tests' ports for those of the table.
fn port(text: &str) -> &'static str {
    match text {
        "443" => "9443",
        "444" => "9444",
        "80" => "9080",
        _ => panic!("docs/names.md has port {text}, which the test does not know"),
    }
}

/// One row of the table in docs/names.md.
#[derive(Debug)]
struct Row {
    way: String,
    versions: Vec<&'static str>,
    target: String,
    port: &'static str,
    sni: String,
    host: String,
    expected: [String; 2],
}

fn rows() -> Vec<Row> {
    let text = include_str!("../../docs/names.md");
    let table = text.lines().skip_while(|line| !line.starts_with("| way |")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|')).map(|line| {
        let cells: Vec<String> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        let [way, versions, target, at, sni, host, observe, enforce] = cells.try_into().expect("eight cells");
        let versions =
            versions.split(", ").map(|version| if version == "2" { "--http2" } else { "--http1.1" });
        // The port of the Host field, where it is not the default of the table's own.
        let host = match host.split_once(':') {
            Some((name, other)) => format!("{}:{}", full(name), port(other)),
            None => format!("{}:{}", full(&host), port(&at)),
        };
        let (versions, port) = (versions.collect(), port(&at));
        Row { way, versions, target, port, sni, host, expected: [observe, enforce] }
    });
    rows.collect()
}

impl Row {
    fn call(&self, billing: &Workload, version: &str) -> Call {
        let (scheme, named) = match self.sni.as_str() {
            "no TLS" if self.way == "absolute" => ("http", full(&self.target).to_owned()),
            "no TLS" => (
                "http",
                full(self.host.split('.').next().unwrap().replace("plain", "insecure").as_str()).to_owned(),
            ),
            // curl sends no SNI where it calls an address.
            "none" => ("https", address("covered")),
            name => ("https", full(name).to_owned()),
        };
        let url = format!("{scheme}://{named}:{}/v1", self.port);
        let asked = match self.target.strip_prefix('@') {
            Some(name) => address(name),
            None => full(&self.target).to_owned(),
        };
        let connect_to = format!("::{asked}:{}", self.port);
        let call = match self.way.as_str() {
            "captured" => billing.curl(&url).args(["-4", "--connect-to", &connect_to]),
            "tunnel" => billing.explicit(&url).args(["--proxytunnel", "--connect-to", &connect_to]),
            "absolute" => billing.explicit(&url),
            other => panic!("docs/names.md has the way {other}, which the test does not know"),
        };
        let call = if self.sni == "none" { call.args(["-k"]) } else { call };
        let version = match (version, self.sni.as_str()) {
            ("--http2", "no TLS") => "--http2-prior-knowledge",
            (version, _) => version,
        };
        call.args([version]).header(&format!("Host: {}", self.host))
    }

    #[track_caller]
    fn check(&self, expected: &str, answer: &Answer, seen: &[Value], context: &str) {
        let told = answer.json().unwrap_or_default();
        match expected.split_once(' ') {
            None if expected == "credential" => {
                assert_eq!((answer.status, &told["credential"]), (200, &true.into()), "{context} {answer:?}");
                let name = self.host.split(':').next().unwrap();
                let host = NAMES.iter().find(|(known, _)| *known == name).unwrap().1;
                let own = [format!("10.77.0.{host}"), format!("fd77::{host:x}")];
                assert!(own.contains(&told["address"].as_str().unwrap().to_owned()), "{context} {told}");
            }
            None if expected == "passes" => {
                assert_eq!(
                    (answer.status, &told["credential"]),
                    (200, &false.into()),
                    "{context} {answer:?}"
                );
            }
            None => {
                assert_eq!((expected, answer.status, seen.len()), ("reset", 0, 0), "{context} {answer:?}");
            }
            Some(("tunnel", code)) => {
                let refused = answer.error.contains(&format!("countersign-code: {code}"));
                assert!(answer.status == 0 && refused && seen.is_empty(), "{context} {answer:?}");
            }
            Some((status, code)) => {
                assert_eq!(
                    (answer.status.to_string().as_str(), answer.code()),
                    (status, code),
                    "{context} {answer:?}"
                );
                assert!(seen.is_empty(), "{context} {seen:?}");
            }
        }
        for request in seen.iter().filter(|request| request["credential"] == true) {
            assert_eq!(expected, "credential", "{context}: a credential has leaked: {request}");
        }
    }
}

#[test]
fn the_published_matrix_is_what_happens() {
    let (world, _names, billing) = started("observe");
    let rows = rows();
    assert!(rows.len() > 30, "{} rows", rows.len());
    for (mode, egress) in ["observe", "enforce"].into_iter().enumerate() {
        world.cover_names(egress).unwrap();
        let uncovered = format!("https://{OTHER}:9443/");
        let wanted = if egress == "observe" { 200 } else { 403 };
        billing.eventually(SOON, |b| b.curl(&uncovered), |answer| answer.status == wanted).unwrap();
        world.names_seen().unwrap();
        for (number, row) in rows.iter().enumerate() {
            for version in &row.versions {
                let answer = row.call(&billing, version).send().unwrap();
                let seen = world.names_seen().unwrap();
                let context = format!("row {} over {version} in {egress}: {row:?}\n", number + 1);
                row.check(&row.expected[mode], &answer, &seen, &context);
            }
        }
    }
}

#[test]
fn what_http2_in_the_clear_asks_and_no_policy_covers_goes_on_by_one_connection() {
    let (world, _names, billing) = started("observe");
    world.names_seen().unwrap();
    let origin = format!("http://{OTHER}:9080");
    let told = billing.script("clear.mjs", &[&origin, "/v1", "/echo", "/trailers", "/ws"]).unwrap();
    for answer in told.as_array().unwrap() {
        assert_eq!(answer["status"], 200, "{told}");
    }
    assert_eq!(told[1]["length"], 100_000, "{told}");
    assert_eq!(told[2]["trailers"]["x-end"], "reached", "{told}");
    assert_eq!(told[3]["length"], 4, "{told}");
    let seen = world.names_seen().unwrap();
    assert_eq!(seen.len(), 4, "{seen:?}");
    for request in &seen {
        assert_eq!(request["headers"]["authorization"], "Bearer theirs", "{request}");
        assert_eq!((&request["version"], &request["from"]), (&"2.0".into(), &seen[0]["from"]), "{request}");
    }
    let told = |event: &Value| event["name"] == OTHER && event["protocol"] == "http";
    eventually(SOON, || events(&world, "passed").iter().filter(|event| told(event)).count() == 4);
    eventually(SOON, || !events(&world, "standing_credential").is_empty());
    // In `enforce` nothing goes on.
    world.cover_names("enforce").unwrap();
    let refused = || billing.script("clear.mjs", &[&origin, "/v1"]).unwrap()[0]["code"] == "CS5005";
    eventually(SOON, refused);
}

/// What comes back of what is said to a name's address in the clear, each on a connection of its own.
fn said(billing: &Workload, name: &str, all: &[String]) -> Vec<String> {
    let escaped: Vec<String> = all.iter().map(|bytes| bytes.escape_default().to_string()).collect();
    let (address, mut args) = (address(name), vec!["", "9080"]);
    args[0] = &address;
    args.extend(escaped.iter().map(String::as_str));
    serde_json::from_value(billing.script("say.py", &args).unwrap()).unwrap()
}

fn asked(host: &str) -> String {
    format!("GET /v1 HTTP/1.1\r\nHost: {host}:9080\r\n\r\n")
}

#[test]
fn a_head_that_can_be_read_in_two_ways_does_not_pass_where_something_is_covered() {
    let (world, _names, billing) = started_with("observe", &["--header-timeout", "2"]);
    let head = |fields: &str| format!("GET /v1 HTTP/1.1\r\n{fields}\r\n");
    let host = format!("Host: {PLAIN}:9080\r\n");
    let cases = [
        (head(&format!("{host}{host}")), "CS3001"),
        (head(&format!("Host : {PLAIN}:9080\r\n")), "CS3001"),
        (head(&format!("{host}X-A: 1\r\n folded\r\n")), "CS3001"),
        (head("X-A: 1\r\n"), "CS3001"),
        (head(&host).replace("\r\n", "\n"), "CS3001"),
        (head(&format!("Host: {PLAIN} a:9080\r\n")).replacen("GET /", "\r\nGET /", 1), "CS3001"),
        (head(&host).replacen("GET ", "GET\t", 1), "CS3001"),
        (head(&host).replacen("GET", &"G".repeat(40), 1).replacen("/v1 ", "/v1  ", 1), "CS3001"),
        (head(&host).replacen(" HTTP/1.1", " http/1.1", 1), "CS3001"),
        (head(&format!("{host}{}", "X-A: 1\r\n".repeat(101))), "CS3002"),
        (head(&format!("{host}X-A: {}\r\n", "a".repeat(70_000))), "CS3002"),
        (
            head(&format!("Host: {OTHER}:9080\r\n")).replace("/v1", &format!("http://{PLAIN}:9080/v1")),
            "CS3006",
        ),
        (head(&format!("Host: {PLAIN}:9081\r\n")), "CS3006"),
        (head(&host).replace("GET", "TRACE"), "CS3009"),
        (head(&format!("{host}Connection: Upgrade\r\nUpgrade: words/1\r\n")), "CS3010"),
        (head(&host).replace("GET /v1", &format!("CONNECT {PLAIN}:9080")), "CS3010"),
    ];
    world.names_seen().unwrap();
    let all: Vec<String> = cases.iter().map(|(bytes, _)| bytes.clone()).collect();
    for ((bytes, code), heard) in cases.iter().zip(said(&billing, "insecure", &all)) {
        assert!(heard.contains(&format!("countersign-code: {code}")), "{bytes}\n{heard}");
    }
    // One that stops before it is clear what it is, and then goes on.
    let stalls = format!(
        "exec 3<>/dev/tcp/{}/9080; printf GE >&3; sleep 9; printf 'T /v1 HTTP/1.1\\r\\nHost: {PLAIN}:9080\\r\\n\\r\\n' >&3; \
        timeout 15 cat <&3",
        address("insecure")
    );
    let heard = billing.application("bash").args(["-c", &stalls]).output(SOON * 3).unwrap();
    assert!(!heard.text().contains("200 OK"), "{heard:?}");
    assert_eq!(world.names_seen().unwrap(), Vec::<Value>::new());
    // What is no HTTP passes all the same: memcached's own words, to a server that does not know them.
    let heard = said(&billing, "other", &["get key\r\n".to_owned()]).remove(0);
    assert!(heard.starts_with("HTTP/1.1 400 Bad Request") && !heard.contains("countersign"), "{heard}");
    eventually(SOON, || events(&world, "passed").iter().any(|event| event["protocol"] == "tcp"));
}

#[test]
fn each_request_in_the_clear_is_looked_at_by_itself() {
    let (world, _names, billing) = started("observe");
    world.names_seen().unwrap();
    // One that passes, one that a policy covers, one that passes, on one connection.
    let mixed = [asked(OTHER), asked(PLAIN), asked(OTHER)].concat();
    let heard = said(&billing, "other", &[mixed]).remove(0);
    assert_eq!(heard.matches("HTTP/1.1 200 OK").count(), 3, "{heard}");
    let seen = world.names_seen().unwrap();
    let credentials: Vec<_> = seen.iter().map(|request| request["credential"].clone()).collect();
    assert_eq!(credentials, [false, true, false], "{seen:?}");
    assert_eq!(seen[0]["from"], seen[2]["from"], "what passes has one connection: {seen:?}");
    assert_ne!(seen[1]["address"], seen[0]["address"], "what is covered goes to its own: {seen:?}");
    // What was asked goes on in the form that it had.
    let forms = [
        format!("GET http://{OTHER}:9080/v1?a=b HTTP/1.1\r\nHost: {OTHER}:9080\r\nX-MiXed: Kept\r\n\r\n"),
        "GET /old HTTP/1.0\r\n\r\n".to_owned(),
        format!(
            "POST /echo HTTP/1.1\r\nHost: {OTHER}:9080\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nword\r\n0\r\n\r\n"
        ),
        // Host without the port, as many clients send it.
        format!("CONNECT {OTHER}:443 HTTP/1.1\r\nHost: {OTHER}\r\n\r\nword"),
        format!(
            "GET /up HTTP/1.1\r\nHost: {OTHER}:9080\r\nConnection: Upgrade\r\nUpgrade: words/1\r\n\r\nword"
        ),
    ];
    let heard = said(&billing, "other", &forms);
    let seen = world.names_seen().unwrap();
    let target = |target: &str| seen.iter().find(|request| request["target"] == target).cloned().unwrap();
    assert!(heard[0].starts_with("HTTP/1.1 200 OK"), "{heard:?}");
    target(&format!("http://{OTHER}:9080/v1?a=b"));
    assert!(heard[1].starts_with("HTTP/1.0 200 OK"), "{heard:?}");
    assert_eq!(target("/old")["host"], format!("{}:9080", address("other")));
    assert!(heard[2].contains("word"), "{heard:?}");
    assert!(heard[3].starts_with("HTTP/1.1 200 ") && heard[3].ends_with("\r\n\r\nbegun word"), "{heard:?}");
    assert!(!heard[3].to_lowercase().contains("content-length"), "{heard:?}");
    target(&format!("{OTHER}:443"));
    assert!(heard[4].starts_with("HTTP/1.1 101 ") && heard[4].ends_with("\r\n\r\nbegun word"), "{heard:?}");
    assert!(heard[4].to_lowercase().contains("upgrade: words/1"), "{heard:?}");
    // Who was dialled before the application spoke is whom it speaks with.
    let tunnel = format!("CONNECT {OTHER}:9080 HTTP/1.1\r\nHost: {OTHER}:9080\r\n\r\n");
    let opened = || {
        let told =
            billing.say_to_explicit(&(tunnel.clone() + &asked(OTHER)).escape_default().to_string()).unwrap();
        let seen = world.names_seen().unwrap();
        seen.last().and_then(|request| request["opened"].as_u64()).unwrap_or_else(|| panic!("{told}"))
    };
    assert_eq!(opened() + 1, opened());
    // A tunnel through the explicit proxy is to the name that it was asked for, with each of its requests.
    let told =
        billing.say_to_explicit(&(tunnel + &asked(OTHER) + &asked(PLAIN)).escape_default().to_string());
    let told = told.unwrap();
    assert!(told.contains("\"host\":\"other.demo.test:9080\"") && told.contains("CS3006"), "{told}");
    // In `enforce` one that is not covered is refused between others.
    world.cover_names("enforce").unwrap();
    let refused = || said(&billing, "insecure", &[asked(PLAIN) + &asked(OTHER) + &asked(PLAIN)]).remove(0);
    eventually(SOON, || refused().contains("countersign-code: CS5005"));
    let heard = refused();
    assert_eq!(heard.matches("HTTP/1.1 200 OK").count(), 2, "{heard}");
}

#[test]
fn names_are_looked_up_as_the_application_would() {
    let (world, mut names, billing) = started("observe");
    let went_to = |name: &str| {
        let answer = billing.explicit(&format!("http://{name}:9080/v1")).send().unwrap();
        let told = answer.json().unwrap_or_else(|_| panic!("{name}: {answer:?}"));
        (told["address"].as_str().unwrap().to_owned(), told["credential"] == true)
    };
    let with = |lines: &str| format!("{}{lines}\n", zone());
    // By TTL: an answer is kept for that long, and not longer.
    names.set_zone(&with("10.77.0.40 moving.demo.test")).unwrap();
    let before = Instant::now();
    assert_eq!(went_to("moving.demo.test").0, "10.77.0.40");
    assert_eq!(went_to("moving.demo.test").0, "10.77.0.40");
    assert_eq!(names.queries("moving.demo.test"), 1, "the second was answered from the cache");
    names.set_zone(&with("10.77.0.43 moving.demo.test")).unwrap();
    eventually(TTL * 3, || went_to("moving.demo.test").0 == "10.77.0.43");
    assert!(before.elapsed() > TTL - Duration::from_secs(1), "earlier than the TTL allows");
    // The search list resolves, but a name that it completes is not the name that a policy covers.
    assert_eq!(went_to("moving").0, "10.77.0.43");
    let (address, credential) = went_to("plain");
    assert!(address.ends_with("41") || address.ends_with("::29"), "{address}");
    assert!(!credential);
    // Compared in one form.
    for spelling in ["PLAIN.Demo.Test", "plain.demo.test."] {
        assert!(went_to(spelling).1, "{spelling}");
    }
    // The hosts file comes first, but not for what is called without TLS.
    let hosts = world.sandbox().read("/run/countersign/etc/hosts").unwrap();
    let hosts =
        hosts.replace("10.77.0.41 plain", "10.77.0.43 plain").replace("fd77::29 plain", "fd77::2b plain");
    world.sandbox().write("/run/countersign/etc/hosts", hosts + "10.77.0.40 moving.demo.test\n").unwrap();
    eventually(SOON, || went_to("moving.demo.test").0 == "10.77.0.40");
    let (address, credential) = went_to(PLAIN);
    assert!(address.ends_with("41") || address.ends_with("::29"), "{address}");
    assert!(credential);
}

fn nft(billing: &Workload, script: &str) {
    let output =
        billing.sandbox().command(billing.place(), As::Root, "nft").arg(script).output(SOON).unwrap();
    assert!(output.success(), "{output:?}");
}

/// Drops what a rule of nftables matches on its way out of the workload, in the table `hole`.
fn drop_out(billing: &Workload, what: &str) {
    let rules = format!(
        "table inet hole {{\nchain output {{\ntype filter hook output priority 0;\n{what} drop\n}}\n}}"
    );
    nft(billing, &rules);
}

#[test]
fn a_destination_that_swallows_connections_costs_all_who_wait_one_time_out() {
    let mut world = World::started(Egress::Observe).unwrap();
    let _names = world.start_names("observe").unwrap();
    let billing = world.billing_with(&["--connect-timeout", "2"]).unwrap();
    drop_out(&billing, "ip daddr 10.77.0.40");
    drop_out(&billing, "ip6 daddr fd77::28");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| billing.curl(&format!("https://{COVERED}:9443/v1")).http2().send().unwrap())
            })
            .collect();
        for call in calls {
            let answer = call.join().unwrap();
            assert_eq!((answer.status, answer.code()), (504, "CS8004"), "{answer:?}");
        }
    });
    // Once before the application is offered a version, once for its request; each by two addresses, in turns.
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[test]
fn a_shared_connection_that_is_dead_is_given_up() {
    let (world, _names, billing) = started("observe");
    let call = |patience: u64| {
        let call = billing.curl(&format!("https://{COVERED}:9443/v1")).http2();
        call.within(Duration::from_secs(patience)).send().unwrap()
    };
    assert_eq!(call(20).status, 200);
    let seen = world.names_seen().unwrap();
    drop_out(&billing, &format!("tcp sport {}", seen[0]["from"]));
    let begun = Instant::now();
    let dead = call(60);
    assert!(
        dead.status >= 500 && begun.elapsed() < Duration::from_secs(50),
        "{dead:?} {:?}",
        begun.elapsed()
    );
    let next = Instant::now();
    assert_eq!(call(20).status, 200);
    assert!(next.elapsed() < Duration::from_secs(10), "{:?}", next.elapsed());
}

#[test]
fn a_family_that_leads_nowhere_costs_no_more_than_its_head_start() {
    let (_world, _names, mut billing) = started("observe");
    let url = format!("https://{COVERED}:9443/v1");
    for (family, lost, left) in [("ip6", "fd77::28", "10.77.0.40"), ("ip", "10.77.0.40", "fd77::28")] {
        // What is kept from before would hide the hole, or fall into it.
        billing.proxy().restart_with(|_| ()).unwrap();
        billing.proxy().wait_until_ready().unwrap();
        drop_out(&billing, &format!("{family} daddr {lost}"));
        for dialled in ["-4", "-6"] {
            let begun = Instant::now();
            let call = billing.curl(&format!("https://{OTHER}:9443/")).args([dialled]);
            assert_eq!(call.send().unwrap().status, 200);
            let told = billing.explicit(&format!("http://{COVERED}:9081/v1")).send().unwrap().json().unwrap();
            assert_eq!(told["address"], left);
            let told = billing.curl(&url).args([dialled, "--http1.1"]).send().unwrap().json().unwrap();
            assert_eq!((&told["credential"], &told["address"]), (&true.into(), &left.into()));
            // Without the head start each would have waited for the time-out of 10 s.
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        }
        nft(&billing, "delete table inet hole");
    }
}

#[test]
fn only_the_application_knows_the_member_of_a_headless_service() {
    let (world, _names, billing) = started("observe");
    let member = |host: u8| {
        let url = format!("https://{MEMBER}:9443/v1");
        billing.curl(&url).args(["--resolve", &format!("{MEMBER}:9443:10.77.0.{host}")])
    };
    // In turns, over connections that are kept: none is used for another member.
    for host in [42, 43, 42, 40, 43] {
        for version in ["--http1.1", "--http2"] {
            let told = member(host).args([version]).send().unwrap().json().unwrap();
            assert_eq!(
                (&told["credential"], &told["address"]),
                (&true.into(), &format!("10.77.0.{host}").into())
            );
        }
    }
    // The explicit proxy is told an address, or can't know.
    let asked = format!("https://{MEMBER}:9443/v1");
    let to = billing.explicit(&asked).args(["--connect-to", "::10.77.0.43:9443"]).send().unwrap();
    assert_eq!(to.json().unwrap()["address"], "10.77.0.43");
    let named = billing.explicit(&asked).send().unwrap();
    assert_eq!((named.status, named.code()), (502, "CS8006"), "{named:?}");
    // Where the proxy looks the name up itself, the application's address does not count.
    let covered = billing.curl(&format!("https://{COVERED}:9443/v1"));
    let told =
        covered.args(["--resolve", &format!("{COVERED}:9443:10.77.0.43")]).send().unwrap().json().unwrap();
    assert!(["10.77.0.40", "fd77::28"].contains(&told["address"].as_str().unwrap()), "{told}");
    assert!(world.names_seen().unwrap().len() > 10);
}

#[test]
fn a_name_that_comes_to_lead_inward_is_refused_and_was_never_dialled() {
    let (world, mut names, billing) = started("observe");
    let spec = "hosts: [turning.demo.test], ports: [9092], insecure: true";
    world.apply(&covering("turning", spec)).unwrap();
    names.set_zone(&format!("{}10.77.0.40 turning.demo.test\n", zone())).unwrap();
    let call = || billing.explicit("http://turning.demo.test:9092/").send().unwrap();
    // Nobody listens there at this address, only at loopback.
    eventually(SOON, || call().code() == "CS8003");
    names.set_zone(&format!("{}127.0.0.1 turning.demo.test\n", zone())).unwrap();
    eventually(TTL * 3, || {
        let answer = call();
        assert_ne!(answer.status, 200, "{answer:?}");
        answer.code() == "CS1002"
    });
    eventually(SOON, || events(&world, "outcome").iter().any(|event| event["code"] == "CS1002"));
}

#[test]
fn a_redirect_is_the_application_s_and_takes_no_credential_along() {
    let (world, _names, billing) = started("observe");
    for version in ["--http1.1", "--http2"] {
        let redirect = |to: &str| {
            let call = billing.curl(&format!("https://{COVERED}:9443/redirect?to={to}")).args([version]);
            call.header("Authorization: Bearer mine")
        };
        let elsewhere = format!("https://{OTHER}:9443/v1");
        let first = redirect(&elsewhere).send().unwrap();
        assert_eq!(
            (first.status, first.header("location")),
            (302, elsewhere.as_str()),
            "the proxy follows nothing"
        );
        world.names_seen().unwrap();
        // To another host, to another port, in the clear: each is another call. curl sends what it was given along.
        for (to, status) in [
            (elsewhere.clone(), 200),
            (format!("https://{COVERED}:9444/v1"), 200),
            (format!("http://{COVERED}:9080/v1"), 403),
            (format!("http://{OTHER}:9080/v1"), 200),
        ] {
            // The answer to the last call is what follows the head of the redirect.
            let followed = redirect(&to).args(["--location-trusted"]).send().unwrap().text();
            let seen = world.names_seen().unwrap();
            let last = followed.split(' ').nth(1).unwrap_or_default();
            assert!(followed.contains("HTTP/") && last == status.to_string(), "{to}: {followed}");
            assert!(status != 403 || followed.contains("CS3008"), "{to}: {followed}");
            assert_eq!(seen[0]["credential"], true, "{to}: {seen:?}");
            for request in &seen[1..] {
                assert_eq!(request["credential"], false, "{to}: {request}");
                assert_eq!(
                    request["headers"]["authorization"], "Bearer mine",
                    "{to}: as the application sent it"
                );
            }
            assert_eq!(seen.len(), if status == 403 { 1 } else { 2 }, "{to}: {seen:?}");
        }
    }
}

#[test]
fn a_standing_credential_is_seen_where_plain_http_passes_and_not_a_byte_changes() {
    let (world, _names, billing) = started("observe");
    let call = billing.curl(&format!("http://{OTHER}:9080/v1")).header("X-API-Key: standing-key");
    let told = call.header("Cookie: session=standing-cookie").send().unwrap().json().unwrap();
    assert_eq!(told["headers"]["x-api-key"], "standing-key");
    assert_eq!(told["headers"]["cookie"], "session=standing-cookie");
    eventually(SOON, || events(&world, "standing_credential").len() == 2);
    let seen = events(&world, "standing_credential");
    let passed = events(&world, "passed");
    let passage = passed.iter().find(|event| event["name"] == OTHER).unwrap();
    for event in &seen {
        assert_eq!(
            event["decision"], passage["decision"],
            "it belongs to the passage that names the destination"
        );
        assert_eq!(event["fingerprint"].as_str().unwrap().len(), 32);
    }
    // Also in a later request of a connection, behind one with a body; once for the connection.
    let url = format!("http://{OTHER}:9080/echo");
    let again = billing.curl(&url).body("x-api-key: not-a-field").args([
        "--next",
        "-sS",
        "-H",
        "X-API-Key: standing-key",
        &url,
    ]);
    assert_eq!(again.args(["--next", "-sS", "-H", "X-API-Key: standing-key"]).send().unwrap().status, 200);
    eventually(SOON, || events(&world, "standing_credential").len() == 3);
    let all = events(&world, "standing_credential");
    let of_key: Vec<_> = all.iter().filter(|event| event["header"] == "x-api-key").collect();
    assert_eq!(of_key[0]["fingerprint"], of_key[1]["fingerprint"], "the same value is known again");
    assert!(!format!("{all:?}").contains("standing-"), "by fingerprint only");
    // What is not opened shows nothing.
    let hidden = billing.curl(&format!("https://{OTHER}:9443/v1")).args(["--cacert", SERVICE_ROOT]);
    assert_eq!(hidden.header("X-API-Key: standing-key").send().unwrap().status, 200);
    eventually(SOON, || events(&world, "passed").iter().any(|event| event["protocol"] == "tls"));
    assert_eq!(events(&world, "standing_credential").len(), 3);
}
