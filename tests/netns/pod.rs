//! A pod as injected: the real programs with the very arguments, variables, volumes and rights of the golden files, in
//! the order in which a kubelet starts and ends them (`tests::pod` says what stands in for it).

use std::time::Duration;

use serde_json::Value;
use tests::pod::{Pod, golden};
use tests::workload::tally;
use tests::{Answer, Call, Egress, Evidence, Mode, Process, Workload, World};

use crate::{events, eventually};

const CAPTURE: &str = "countersign-capture";
const PROXY: &str = "countersign-proxy";
/// Pods of a cluster with native sidecars, and of one before 1.29.
const NATIVE: &str = "injected/002-CREATE-pods-bare-bare.snap";
const PLAIN: &str = "injected/without-native-sidecars.snap";
/// A pod that may not have NET_ADMIN.
const EXPLICIT: &str = "injected/explicit-proxy.snap";
const CHARGES: &str = "https://payments.demo.test/v1/charges/{id}";
/// For what takes as long as a call or a start.
const SOON: Duration = Duration::from_secs(20);

/// A world, and a workload for a pod. A container has a UID of its own, which needs root.
fn cluster() -> Option<(World, Workload, String)> {
    let (mut world, fingerprint) = tests::pod::world(Egress::Enforce).unwrap();
    if world.mode() == Mode::Rootless {
        return None;
    }
    let billing = world.workload("billing", Evidence::billing()).unwrap();
    Some((world, billing, fingerprint))
}

/// A call by the application.
fn call(pod: &Pod<'_>) -> Answer {
    let curl = pod.application("app", "curl").unwrap();
    Call::new(curl, "https://payments.demo.test/v1/charges/42").send().unwrap()
}

/// Starts the proxy's container and waits as the kubelet does, by its start-up probe.
fn start_proxy(pod: &Pod<'_>) -> Process {
    let proxy = pod.start(PROXY).unwrap();
    wait_until_started(pod, &proxy);
    proxy
}

/// Repeats the start-up probe, which waits for a while each time, as the kubelet does.
fn wait_until_started(pod: &Pod<'_>, proxy: &Process) {
    eventually(SOON, || pod.exec(PROXY, proxy, &["startupProbe"]).unwrap().success());
}

#[test]
fn nothing_leaves_a_pod_before_its_proxy_is_ready_and_its_event_says_for_what_it_waits() {
    let Some((mut world, billing, fingerprint)) = cluster() else { return };
    let pod = Pod::new(&billing, golden(NATIVE, &fingerprint).unwrap()).unwrap();
    world.control().kill9();
    let captured = pod.run(CAPTURE).unwrap();
    assert!(captured.success(), "{captured:?}");
    // What an init container that ran now would get.
    assert_eq!(call(&pod).exit, 7, "refused by the kernel");

    let mut proxy = pod.start(PROXY).unwrap();
    let health = "--health=127.0.0.1:14020";
    let said = std::cell::RefCell::new(String::new());
    let waits_for = |what: &str| {
        let probe = ["/countersign-proxy", "ready", health];
        let output = pod.exec_words(PROXY, &proxy, probe, SOON).unwrap();
        assert!(!output.success());
        said.replace(output.stderr);
        said.borrow().contains(what)
    };
    // The kubelet makes an event of what a failed probe prints.
    let why = "not ready: first policy (CS6001 the control plane can't be reached: Connection refused";
    eventually(SOON, || waits_for(why));
    let closed = call(&pod);
    assert_eq!(closed.status, 0, "not even a certificate is shown: {closed:?}");
    assert!(!pod.readiness(PROXY).unwrap().0);
    assert_eq!(world.seen().unwrap().count, 0);

    world.control().restart().unwrap();
    wait_until_started(&pod, &proxy);
    assert!(pod.readiness(PROXY).unwrap().0);
    assert_eq!(call(&pod).status, 200);

    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid().unwrap())).unwrap();
    for line in ["Uid:\t14014\t14014\t14014\t14014", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"]
    {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert_eq!(proxy.terminate(SOON).unwrap(), 0);
}

#[test]
fn a_proxy_that_is_killed_goes_on_under_a_running_application() {
    let Some((mut world, billing, fingerprint)) = cluster() else { return };
    let pod = Pod::new(&billing, golden(NATIVE, &fingerprint).unwrap()).unwrap();
    assert!(pod.run(CAPTURE).unwrap().success());
    let mut proxy = start_proxy(&pod);
    let mut application = pod.steady("app", CHARGES, &["--pause-ms", "20"]).unwrap();
    application.wait_for(200, 10, SOON).unwrap();
    let bundle = pod.file("countersign-trust", "ca-bundle.pem").unwrap();

    proxy.kill9();
    proxy = start_proxy(&pod);
    let good = |calls: &[tests::workload::Made]| calls.iter().filter(|made| made.status == 200).count();
    let before = good(&application.calls());
    application.wait_for(200, before + 10, SOON).unwrap();
    assert_eq!(
        pod.file("countersign-trust", "ca-bundle.pem").unwrap(),
        bundle,
        "it has read that at its start"
    );

    // Without the control plane what was granted works, and the pod stays ready.
    world.control().kill9();
    let before = good(&application.calls());
    application.wait_for(200, before + 10, SOON).unwrap();
    let (ready, said) = pod.readiness(PROXY).unwrap();
    assert!(ready, "{said}");
    world.control().restart().unwrap();
    world.control().wait_until_ready().unwrap();

    // The kubelet ends native sidecars after the containers beside them.
    let calls = application.finish().unwrap();
    let bare: Vec<_> =
        world.seen().unwrap().requests.into_iter().filter(|seen| seen.caller.is_none()).collect();
    assert!(bare.is_empty(), "requests without their credential: {bare:?}");
    assert_eq!(proxy.terminate(Duration::from_secs(40)).unwrap(), 0);
    assert_eq!(calls.last().unwrap().status, 200, "{:?}", tally(&calls));
    everything_is_in_audit(&world);
}

/// Each request that reached the service, with its outcome.
fn everything_is_in_audit(world: &World) {
    let seen = world.seen().unwrap();
    let decisions = |kind: &str| -> Vec<String> {
        events(world, kind).iter().filter_map(|event| Some(event["decision"].as_str()?.to_owned())).collect()
    };
    eventually(SOON, || decisions("intent").len() as u64 >= seen.count);
    let outcomes = decisions("outcome");
    let open: Vec<_> = decisions("intent").into_iter().filter(|one| !outcomes.contains(one)).collect();
    assert!(open.is_empty(), "without an outcome: {open:?}");
}

#[test]
fn a_job_of_less_than_a_second_works_and_its_pod_ends_with_everything_in_audit() {
    let Some((mut world, billing, fingerprint)) = cluster() else { return };
    let pod = Pod::new(&billing, golden(NATIVE, &fingerprint).unwrap()).unwrap();
    assert!(pod.run(CAPTURE).unwrap().success());
    let mut proxy = start_proxy(&pod);
    assert_eq!(call(&pod).status, 200);
    // The application has ended, so the kubelet ends the sidecar at once; the pod has succeeded if that ends well.
    assert_eq!(proxy.terminate(SOON).unwrap(), 0);
    assert_eq!(world.seen().unwrap().count, 1);
    world.control().wait_until_ready().unwrap();
    everything_is_in_audit(&world);
}

#[test]
fn before_native_sidecars_the_proxy_serves_until_the_application_has_gone() {
    let Some((world, billing, fingerprint)) = cluster() else { return };
    let pod = Pod::new(&billing, golden(PLAIN, &fingerprint).unwrap()).unwrap();
    assert!(pod.run(CAPTURE).unwrap().success());
    let mut proxy = pod.start(PROXY).unwrap();
    // The kubelet starts the application when this hook has returned.
    let started = pod.exec(PROXY, &proxy, &["lifecycle", "postStart"]).unwrap();
    assert!(started.success(), "{started:?}\n{}", proxy.tail());
    let mut application = pod.steady("app", CHARGES, &["--pause-ms", "20"]).unwrap();
    application.wait_for(200, 10, SOON).unwrap();

    // All containers of the pod are told to end at the same moment; the application takes its time.
    let (calls, stopped) = std::thread::scope(|scope| {
        let hook = scope.spawn(|| pod.exec(PROXY, &proxy, &["lifecycle", "preStop"]));
        let before = application.calls().len();
        application.wait_for(200, before + 50, SOON).unwrap();
        assert!(!hook.is_finished(), "an application is there that still calls");
        (application.finish().unwrap(), hook.join().unwrap().unwrap())
    });
    assert!(stopped.success(), "{stopped:?}");
    assert_eq!(tally(&calls).len(), 1, "every call was answered: {:?}", tally(&calls));
    assert_eq!(proxy.terminate(Duration::from_secs(40)).unwrap(), 0);
    everything_is_in_audit(&world);
}

#[test]
fn where_no_container_may_have_net_admin_the_application_is_told_of_its_proxy() {
    let Some((world, billing, fingerprint)) = cluster() else { return };
    let pod = Pod::new(&billing, golden(EXPLICIT, &fingerprint).unwrap()).unwrap();
    assert!(pod.run(CAPTURE).is_err(), "there is nothing to install");
    let mut proxy = start_proxy(&pod);
    assert_eq!(call(&pod).status, 200);
    assert!(world.seen().unwrap().requests.iter().all(|request| request.caller.is_some()));
    assert_eq!(proxy.terminate(SOON).unwrap(), 0);
}

#[test]
fn a_debug_container_sees_neither_the_proxy_s_process_nor_its_volumes() {
    let Some((_world, billing, fingerprint)) = cluster() else { return };
    let pod = Pod::new(&billing, golden(NATIVE, &fingerprint).unwrap()).unwrap();
    assert!(pod.run(CAPTURE).unwrap().success());
    let mut proxy = start_proxy(&pod);
    let look = "cat /proc/[0-9]*/comm; ls /run/countersign /var/lib/countersign 2>&1; grep -l countersign-proxy /proc/*/maps";
    let seen = pod.debugger("sh").args(["-c", look]).output(SOON).unwrap().text();
    assert!(!seen.contains("countersign-proxy\n") && !seen.contains("countersign-pro"), "{seen}");
    assert_eq!(seen.matches("No such file").count(), 2, "no volume of the pod is there: {seen}");
    // The application has the bundle, without the key that signs.
    let keys = "ls /run/countersign /run/countersign/trust; grep -l 'PRIVATE KEY' -r /run/countersign";
    let seen = pod.application("app", "sh").unwrap().args(["-c", keys]).output(SOON).unwrap().text();
    assert!(seen.contains("ca-bundle.pem") && !seen.contains("private") && !seen.contains("token"), "{seen}");
    assert!(!seen.contains("/run/countersign/trust/ca"), "{seen}");
    assert_eq!(proxy.terminate(SOON).unwrap(), 0);
}

#[test]
fn at_the_proxy_s_port_in_a_pod_there_is_health_and_nothing_else() {
    let Some((_world, billing, fingerprint)) = cluster() else { return };
    let pod = Pod::new(&billing, golden(NATIVE, &fingerprint).unwrap()).unwrap();
    assert!(pod.run(CAPTURE).unwrap().success());
    let _proxy = start_proxy(&pod);
    assert_eq!(call(&pod).status, 200);
    let ask = |path: &str, args: &[&str]| {
        let curl = pod.application("app", "curl").unwrap();
        let url = format!("http://127.0.0.1:14020{path}");
        Call::new(curl, &url).args(args.iter().copied()).send().unwrap()
    };
    for path in ["/", "/debug/pprof", "/config", "/certs", "/quit", "/drain", "/metrics/../state"] {
        assert_eq!(ask(path, &["--path-as-is"]).status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        assert_eq!(ask("/livez", &["-X", method]).status, 405);
    }
    let metrics = ask("/metrics", &[]).text();
    for name in ["payments", "billing", "PRIVATE", "eyJ"] {
        assert!(!metrics.contains(name), "{name}: {metrics}");
    }
}

#[test]
fn the_golden_pods_are_those_that_are_run_here() {
    for name in [NATIVE, PLAIN] {
        let spec = golden(name, "sha256:0").unwrap();
        let all = [&spec["initContainers"], &spec["containers"]];
        let containers = all.iter().flat_map(|list| list.as_array().unwrap());
        let names: Vec<&str> = containers.filter_map(|one: &Value| one["name"].as_str()).collect();
        assert!(names.starts_with(&[CAPTURE, PROXY]), "{names:?}");
    }
}
