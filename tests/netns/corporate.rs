//! A corporate proxy (tinyproxy) through which upstreams are reached.

use std::sync::Arc;
use std::time::Duration;

use tests::daemon::Recipe;
use tests::names::{COVERED, OTHER, PLAIN};
use tests::sandbox::PRIVATE;
use tests::world::SERVICE_ROOT;
use tests::{As, Daemon, Egress, Sandbox, World};

const SOON: Duration = Duration::from_secs(20);

/// tinyproxy at 10.77.0.60:3128, which wants a credential and refuses what is called `forbidden`.
fn tinyproxy(sandbox: &Arc<Sandbox>) -> Daemon {
    sandbox.add_host("corporate.demo.test", 60).unwrap();
    let configuration = format!(
        "Port 3128\nListen 10.77.0.60\nTimeout 60\nMaxClients 50\nBasicAuth wanderer open-sesame\nConnectPort 9443\n\
         ConnectPort 9444\nConnectPort 9080\nConnectPort 9999\nFilter \"{PRIVATE}/filter\"\nFilterExtended On\nLogLevel Connect\n"
    );
    sandbox.write(format!("{PRIVATE}/tinyproxy.conf"), configuration).unwrap();
    sandbox.write(format!("{PRIVATE}/filter"), "forbidden\n").unwrap();
    let recipe = Recipe {
        name: "tinyproxy".to_owned(),
        client: None,
        who: As::Root,
        program: "tinyproxy",
        args: vec!["-d".to_owned(), "-c".to_owned(), format!("{PRIVATE}/tinyproxy.conf")],
        probe: None,
    };
    Daemon::start(sandbox, recipe).unwrap()
}

#[test]
fn upstreams_are_reached_through_the_corporate_proxy() {
    let mut world = World::started(Egress::Observe).unwrap();
    let _names = world.start_names("observe").unwrap();
    let mut corporate = tinyproxy(&world.sandbox().clone());
    let mut billing = world.billing().unwrap();
    let credential = format!("{}/corporate", billing.directory());
    world.sandbox().write(&credential, "wanderer:open-sesame\n").unwrap();
    let with = ["--upstream-proxy", "http://corporate.demo.test:3128"];
    let file = ["--upstream-proxy-credential-file", &credential];
    let except = ["--upstream-proxy-except", &format!("{PLAIN},10.77.0.10,fd77::a")];
    billing.start_explicit(&[&with[..], &file, &except].concat()).unwrap();
    // It says nothing of being ready; until it listens it can't be used.
    let first = |b: &tests::Workload| b.curl(&format!("https://{COVERED}:9443/v1"));
    billing.eventually(SOON, first, |answer| answer.status == 200).unwrap();
    let through = |corporate: &Daemon, what: &str| corporate.logs().contains(&format!("CONNECT {what}"));
    // Covered: by its name, and verified end to end.
    for version in ["--http1.1", "--http2"] {
        let told = billing.curl(&format!("https://{COVERED}:9443/v1")).args([version]).send().unwrap();
        assert_eq!(told.json().unwrap()["credential"], true, "{told:?}");
    }
    assert!(through(&corporate, "covered.demo.test:9443"), "{}", corporate.logs());
    // Not covered: by the address that the application dialled, untouched; in a tunnel and in absolute-form by the name.
    let passed = billing.curl(&format!("https://{OTHER}:9443/v1")).args(["-4", "--cacert", SERVICE_ROOT]);
    assert_eq!(passed.send().unwrap().status, 200);
    assert!(through(&corporate, "10.77.0.43:9443"), "{}", corporate.logs());
    assert_eq!(billing.explicit(&format!("https://{OTHER}:9444/v1")).send().unwrap().status, 200);
    assert_eq!(billing.explicit(&format!("http://{OTHER}:9080/v1")).send().unwrap().status, 200);
    assert!(through(&corporate, "other.demo.test:9444") && through(&corporate, "other.demo.test:9080"));
    // What is excepted goes directly, by its name or by its address.
    let plain = billing.curl(&format!("http://{PLAIN}:9080/v1")).send().unwrap();
    assert_eq!(plain.json().unwrap()["credential"], true, "{plain:?}");
    assert_eq!(billing.payments("/v1/charges/42").send().unwrap().status, 200);
    assert!(!through(&corporate, "plain") && !through(&corporate, "payments"), "{}", corporate.logs());
    assert!(!billing.proxy().logs().contains("open-sesame") && !billing.proxy().logs().contains("b3Blbi"));
    // Each way in which it fails has its own code.
    let forbidden = tests::names::covering("forbidden", "hosts: [forbidden.demo.test], ports: [9443]");
    world
        .apply(&(forbidden + &tests::names::covering("closed", "hosts: [other.demo.test], ports: [9999]")))
        .unwrap();
    let call = |url: &'static str| {
        move |billing: &tests::Workload| billing.curl(url).args(["--connect-to", "::10.77.0.43:"])
    };
    let coded = |code: &'static str| move |answer: &tests::Answer| answer.code() == code;
    let (_, refused) =
        billing.eventually(SOON, call("https://forbidden.demo.test:9443/"), coded("CS8008")).unwrap();
    assert_eq!(refused.status, 502);
    let (_, closed) =
        billing.eventually(SOON, call("https://other.demo.test:9999/"), coded("CS8003")).unwrap();
    assert_eq!(closed.status, 502);
    world.sandbox().write(&credential, "wanderer:wrong\n").unwrap();
    billing.proxy().restart_with(|_| ()).unwrap();
    billing.proxy().wait_until_ready().unwrap();
    let (_, wrong) =
        billing.eventually(SOON, call("https://covered.demo.test:9443/"), coded("CS8008")).unwrap();
    assert!(wrong.text().contains("407") || wrong.text().contains("401"), "{}", wrong.text());
    corporate.kill9();
    let answer = billing.curl("https://covered.demo.test:9443/").send().unwrap();
    assert_eq!((answer.status, answer.code()), (502, "CS8009"), "{answer:?}");
}
