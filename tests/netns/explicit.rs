//! The explicit proxy: what an application asks it for is judged as what is captured.

use std::time::Duration;

use tests::names::{COVERED, EXPLICIT, Names, OTHER, PLAIN};
use tests::world::SERVICE_ROOT;
use tests::{Answer, Egress, Workload, World};

use crate::{events, eventually};

const SOON: Duration = Duration::from_secs(20);

fn started(egress: &str, more: &[&str]) -> (World, Names, Workload) {
    let mut world = World::started(Egress::Observe).unwrap();
    let names = world.start_names(egress).unwrap();
    let mut billing = world.billing().unwrap();
    billing.start_explicit(more).unwrap();
    (world, names, billing)
}

fn url(scheme: &str, name: &str, port: u16) -> String {
    format!("{scheme}://{name}:{port}/v1")
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{answer:?} {}", answer.text());
}

/// The tunnel itself was refused: curl shows the proxy's answer.
#[track_caller]
fn tunnel_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, 0, "{answer:?}");
    assert!(answer.error.contains(&format!("< HTTP/1.1 {status} ")), "{}", answer.error);
    assert!(answer.error.contains(&format!("countersign-code: {code}")), "{}", answer.error);
}

#[test]
fn what_is_in_a_tunnel_is_judged_as_what_is_captured() {
    let (world, _names, billing) = started("observe", &[]);
    for version in ["--http1.1", "--http2"] {
        for proxy in [format!("http://127.0.0.1:{EXPLICIT}"), format!("http://[::1]:{EXPLICIT}")] {
            let call = billing.explicit(&url("https", COVERED, 9443)).args([version, "--proxy", &proxy]);
            let answer = call.header("Authorization: Bearer mine").send().unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            let told = answer.json().unwrap();
            assert_eq!(told["credential"], true, "{told}");
            assert_eq!(told["headers"].get("proxy-authorization"), None);
        }
        // What no policy covers is not opened: the server's own root verifies it.
        let call = billing.explicit(&url("https", OTHER, 9443)).args([version, "--cacert", SERVICE_ROOT]);
        let told = call.header("Authorization: Bearer mine").send().unwrap().json().unwrap();
        assert_eq!(
            (&told["credential"], &told["headers"]["authorization"]),
            (&false.into(), &"Bearer mine".into())
        );
    }
    eventually(SOON, || {
        events(&world, "passed").iter().any(|event| event["name"] == OTHER && event["protocol"] == "tls")
    });
    eventually(SOON, || !events(&world, "standing_credential").is_empty());
    // The server speaks first, and what follows goes both ways.
    let said = billing
        .say_to_explicit("CONNECT other.demo.test:9025 HTTP/1.1\\r\\nHost: other.demo.test\\r\\n\\r\\n");
    assert_eq!(said.unwrap(), "HTTP/1.1 200 Connection established\r\n\r\n220 names\r\n");
    // The application speaks at once, behind its CONNECT.
    let eager = "CONNECT plain.demo.test:9080 HTTP/1.0\\r\\n\\r\\nGET /early HTTP/1.1\\r\\nHost: plain.demo.test:9080\\r\\n\\r\\n";
    let said = billing.say_to_explicit(eager).unwrap();
    assert!(said.contains("\"target\":\"/early\"") && said.contains("\"credential\":true"), "{said}");
}

#[test]
fn a_tunnel_that_can_not_be_is_refused_in_the_clear() {
    let (world, _names, billing) = started("observe", &[]);
    let nowhere = billing.explicit("https://nowhere.demo.test/").send().unwrap();
    tunnel_refused(&nowhere, 502, "CS8006");
    let closed = billing.explicit(&url("https", OTHER, 9999)).send().unwrap();
    tunnel_refused(&closed, 502, "CS8003");
    for malformed in [
        "CONNECT other.demo.test HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n",
        "CONNECT other.demo.test:1 HTTP/1.1\\n\\n",
    ] {
        let said = billing.say_to_explicit(malformed).unwrap();
        assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("CS3001"), "{said}");
    }
    // A CONNECT whose own Host field names another service, or another port of the same.
    for host in ["covered.demo.test:9443", "other.demo.test:9444"] {
        let connect = format!("CONNECT other.demo.test:9443 HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n");
        let said = billing.say_to_explicit(&connect).unwrap();
        assert!(said.starts_with("HTTP/1.1 421 ") && said.contains("CS3006"), "{said}");
    }
    world.cover_names("enforce").unwrap();
    let url = url("https", OTHER, 9443);
    billing
        .eventually(SOON, |b| b.explicit(&url), |answer| answer.error.contains("countersign-code: CS5005"))
        .unwrap();
    assert!(world.names_seen().unwrap().is_empty());
}

#[test]
fn requests_in_absolute_form_are_judged_one_by_one() {
    let (world, _names, billing) = started("observe", &[]);
    let told = billing.explicit(&url("http", PLAIN, 9080)).send().unwrap().json().unwrap();
    assert_eq!((&told["credential"], &told["target"]), (&true.into(), &"/v1".into()), "{told}");
    refused(&billing.explicit(&url("http", COVERED, 9080)).send().unwrap(), 403, "CS3008");
    // Not covered: it goes where it says, with what the application sends but for what is the proxy's.
    let standing = "Authorization: Basic c3RhbmRpbmc=";
    let call = billing
        .explicit(&url("http", OTHER, 9080))
        .header(standing)
        .header("Proxy-Authorization: Basic eDp5");
    let told = call.header("Proxy-Connection: keep-alive").send().unwrap().json().unwrap();
    assert_eq!(told["headers"]["authorization"], "Basic c3RhbmRpbmc=");
    assert_eq!(told["headers"].get("proxy-authorization"), None, "{told}");
    assert_eq!(told["headers"].get("proxy-connection"), None, "{told}");
    eventually(SOON, || {
        events(&world, "passed").iter().any(|e| e["name"] == OTHER && e["protocol"] == "http")
    });
    eventually(SOON, || !events(&world, "standing_credential").is_empty());
    assert!(!format!("{:?}", events(&world, "standing_credential")).contains("c3RhbmRpbmc"));
    // A body, both ways; an address; one connection for several hosts, each judged.
    let echo = billing
        .explicit("http://other.demo.test:9080/echo")
        .method("POST")
        .body("up and down")
        .send()
        .unwrap();
    assert_eq!((echo.status, echo.text().as_str()), (200, "up and down"));
    assert_eq!(billing.explicit("http://10.77.0.43:9080/v1").send().unwrap().status, 200);
    let mixed = "GET http://other.demo.test:9080/a HTTP/1.1\\r\\nHost: other.demo.test:9080\\r\\n\\r\\n\
        GET http://plain.demo.test:9080/b HTTP/1.1\\r\\nHost: plain.demo.test:9080\\r\\n\\r\\n";
    let said = billing.say_to_explicit(mixed).unwrap();
    let credentials: Vec<_> =
        said.match_indices("\"credential\":").map(|(at, _)| &said[at + 13..at + 17]).collect();
    assert_eq!(credentials, ["fals", "true"], "{said}");
    for (request, status, code) in [
        ("GET https://other.demo.test:9443/ HTTP/1.1\\r\\nHost: other.demo.test:9443", 403, "CS3010"),
        ("GET / HTTP/1.1\\r\\nHost: other.demo.test", 400, "CS3001"),
        ("GET http://u:p@other.demo.test:9080/ HTTP/1.1\\r\\nHost: other.demo.test:9080", 400, "CS3001"),
    ] {
        let said = billing.say_to_explicit(&format!("{request}\\r\\n\\r\\n")).unwrap();
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(code), "{said}");
    }
    world.cover_names("enforce").unwrap();
    let other = url("http", OTHER, 9080);
    let (_, answer) =
        billing.eventually(SOON, |b| b.explicit(&other), |answer| answer.status == 403).unwrap();
    refused(&answer, 403, "CS5005");
}

#[test]
fn without_the_token_the_explicit_proxy_says_407() {
    let mut world = World::started(Egress::Observe).unwrap();
    let _names = world.start_names("observe").unwrap();
    let mut billing = world.billing().unwrap();
    let file = format!("{}/explicit-token", billing.directory());
    world.sandbox().write(&file, "the-right-token\n").unwrap();
    billing.start_explicit(&["--explicit-token-file", &file]).unwrap();
    for url in [url("https", COVERED, 9443), url("http", PLAIN, 9080), url("http", OTHER, 9080)] {
        for wrong in [&[][..], &["--proxy-user", "any:wrong"]] {
            let answer = billing.explicit(&url).args(wrong.iter().copied()).send().unwrap();
            assert!(
                answer.error.contains("< HTTP/1.1 407 Proxy authentication required CS1006"),
                "{}",
                answer.error
            );
            assert!(answer.error.to_lowercase().contains("< proxy-authenticate: basic"), "{}", answer.error);
        }
        let right = billing.explicit(&url).args(["--proxy-user", "any:the-right-token"]).send().unwrap();
        assert_eq!(right.status, 200, "{right:?}");
        assert!(!right.text().contains("proxy-authorization"), "{}", right.text());
    }
    assert_eq!(world.names_seen().unwrap().len(), 3);
    assert!(!billing.proxy().logs().contains("the-right-token"));
}

#[test]
fn the_explicit_proxy_leads_nobody_to_where_only_the_proxy_should_go() {
    let (world, _names, billing) = started("observe", &["--refuse-cidr", "10.77.0.43/32,fd77::2b/128"]);
    let hosts = world.sandbox().read("/run/countersign/etc/hosts").unwrap();
    world
        .sandbox()
        .write("/run/countersign/etc/hosts", hosts + "169.254.169.254 inward.demo.test\n")
        .unwrap();
    // The hosts file is looked at again after a second.
    std::thread::sleep(Duration::from_millis(1100));
    let asked = |target: &&str| {
        let connect = format!("CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n");
        [connect, format!("GET http://{target}/ HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n")]
    };
    let inward = [
        "127.0.0.1:9092",
        "[::1]:9092",
        "[::ffff:127.0.0.1]:9092",
        "169.254.169.254:80",
        "[fd00:ec2::254]:80",
        "[64:ff9b::169.254.169.254]:80",
        "0.0.0.0:9092",
        "127.0.0.1:15002",
        "127.0.0.1:15001",
        "127.0.0.1:15020",
        "localhost:9092",
        "inward.demo.test:80",
        // What the operator refuses.
        "10.77.0.43:9080",
        "other.demo.test:9080",
    ];
    let requests: Vec<String> = inward.iter().flat_map(asked).collect();
    for (request, said) in requests.iter().zip(billing.say_all_to_explicit(&requests).unwrap()) {
        assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("CS1002"), "{request}: {said}");
    }
    let spelt = ["2130706433:9092", "0x7f000001:9092", "0x7f.1:9092", "0177.0.0.1:9092", "127.1:9092"];
    let requests: Vec<String> = spelt.iter().flat_map(asked).collect();
    for (request, said) in requests.iter().zip(billing.say_all_to_explicit(&requests).unwrap()) {
        assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("CS3001"), "{request}: {said}");
    }
    // What a destination lists is meant, but for the proxy itself.
    let listed = "hosts: [other.demo.test], ports: [9444], addresses: [10.77.0.43, fd77::2b]";
    let itself = "addresses: [127.0.0.1], ports: [15001, 15002], protocol: tcp";
    let itself = tests::names::covering("itself", itself).replace("  credential: names-token\n", "");
    world.apply(&(tests::names::covering("listed", listed) + &itself)).unwrap();
    let call = |b: &Workload| b.explicit(&url("https", OTHER, 9444));
    let (_, answer) = billing.eventually(SOON, call, |answer| answer.status == 200).unwrap();
    assert_eq!(answer.json().unwrap()["credential"], true);
    let said = billing.say_to_explicit("CONNECT 127.0.0.1:15001 HTTP/1.0\\r\\n\\r\\n").unwrap();
    assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("CS1002"), "{said}");
}

#[test]
fn http2_is_judged_inside_a_tunnel_and_refused_outside() {
    let (world, _names, billing) = started("observe", &[]);
    // The preface, SETTINGS, and GET /h2 as literals (RFC 7541 §6.2.2).
    let preface = "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\0\\0\\0\\x04\\0\\0\\0\\0\\0";
    let request = |host: &str| {
        let block = format!("\\x82\\x86\\0\\n:authority{}{host}\\0\\x05:path\\x03/h2", escaped(host.len()));
        // What each escape stands for is one byte.
        let length = 2 + 2 + 10 + 1 + host.len() + 2 + 5 + 1 + 3;
        format!("\\0\\0{}\\x01\\x05\\0\\0\\0\\x01{block}", escaped(length))
    };
    let tunnel = |host: &str| {
        let connect = format!("CONNECT {host} HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n");
        billing.say_to_explicit(&format!("{connect}{preface}{}", request(host))).unwrap()
    };
    // Covered, where nothing goes in the clear: read as HTTP/2, and answered as such.
    let said = tunnel("covered.demo.test:9080");
    assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("CS3008"), "{said:?}");
    eventually(SOON, || {
        events(&world, "refusal").iter().any(|e| e["code"] == "CS3008" && e["path"] == "/h2")
    });
    assert!(world.names_seen().unwrap().is_empty());
    // Not covered: it passes.
    let said = tunnel("other.demo.test:9080");
    assert!(said.contains("\"target\":\"/h2\"") && !said.contains("CS3"), "{said:?}");
    world.names_seen().unwrap();
    // To the proxy itself: SETTINGS, and GOAWAY with HTTP_1_1_REQUIRED (13).
    let said = billing.say_to_explicit(&format!("{preface}{}", request("other.demo.test:9080"))).unwrap();
    assert!(said.starts_with("\0\0\0\x04\0\0\0\0\0") && said.contains("\0\0\0\x0dCS3010 "), "{said:?}");
    eventually(SOON, || events(&world, "refusal").iter().any(|event| event["code"] == "CS3010"));
}

/// A byte as `say.py` reads it.
fn escaped(byte: usize) -> String {
    format!("\\x{byte:02x}")
}

#[test]
fn a_bypass_is_for_the_explicit_proxy_too() {
    let (world, _names, billing) = started("enforce", &[]);
    let other = url("https", OTHER, 9443);
    tunnel_refused(&billing.explicit(&other).send().unwrap(), 403, "CS5005");
    let target = ["workload/billing", "-n", "payments"];
    let begin = [&["bypass"], &target[..], &["--for", "10m", "--reason", "incident 7"]].concat();
    assert!(world.countersign(&begin).unwrap().success());
    // Each by the server's own certificate, with what the application sends and nothing of ours.
    for url in
        [other.clone(), url("https", COVERED, 9443), url("http", PLAIN, 9080), url("http", OTHER, 9080)]
    {
        let call = |b: &Workload| {
            let call = b.explicit(&url).args(["--cacert", SERVICE_ROOT]);
            call.header("Authorization: Bearer mine")
        };
        let (_, answer) = billing.eventually(SOON, call, |answer| answer.status == 200).unwrap();
        let told = answer.json().unwrap();
        assert_eq!(
            (&told["credential"], &told["headers"]["authorization"]),
            (&false.into(), &"Bearer mine".into()),
            "{url}: {told}"
        );
    }
    eventually(SOON, || {
        let passed = events(&world, "passed");
        passed.iter().filter(|event| event["bypass"].is_string()).count() >= 4
    });
    assert!(world.countersign(&[&["bypass"], &target[..], &["--lift"]].concat()).unwrap().success());
    let ended = |answer: &Answer| answer.error.contains("countersign-code: CS5005");
    billing.eventually(SOON, |b| b.explicit(&other), ended).unwrap();
}
