//! A pod as a kubelet runs it, from the JSON of its spec.
//!
//! A stand-in for kubelet and container runtime by their documentation: the containers of a pod share its network
//! namespace and their volumes, and nothing else. Each has a root of its own that it can't write to, a process namespace
//! in which its program is the first, the UID and the capabilities that its security context says, and no variable that
//! the spec does not give it. Images are this machine's programs, with ours where it is in the image.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::sandbox::{As, HOME, Inside, Output, PRIVATE, PROGRAMS, Place, Process};
use crate::workload::{Steady, Workload};
use crate::world::{Egress, SERVICE_ROOT, World};

/// The control plane's name in the golden files, and its address among the hosts.
const CONTROL_IN_PODS: &str = "countersign-control.countersign.svc";
const CONTROL_HOST: u8 = 12;
/// UID of the application: what its image says.
const APPLICATION_UID: u32 = 10_001;
/// Our program in our image.
const OWN_PROGRAM: &str = "/countersign-proxy";
/// Where the programs of the application's image are.
pub const APPLICATION: &str = "/app";
/// Time for a container that ends, and for a probe that says no time of its own.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a runtime gives a container that says nothing (containerd's default).
const DEFAULT_CAPABILITIES: &str = "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,\
    +net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

/// A pod, in the network namespace of a workload and with its evidence.
#[derive(Debug)]
pub struct Pod<'a> {
    workload: &'a Workload,
    spec: Value,
    directory: String,
}

/// A world in which everything runs but pods, with a control plane that has the name that the golden files have; and the
/// fingerprint of its root key.
///
/// # Errors
/// If a program does not start.
pub fn world(egress: Egress) -> anyhow::Result<(World, String)> {
    let mut world = World::started(egress)?;
    world.sandbox().add_host(CONTROL_IN_PODS, CONTROL_HOST)?;
    let logs = world.control().logs();
    let (_, rest) =
        logs.split_once("\"fingerprints\":\"").context("the control plane says its fingerprints")?;
    let fingerprint = rest.split(['"', ' ']).next().unwrap_or_default().to_owned();
    Ok((world, fingerprint))
}

/// A spec as injection makes it: the pod of a golden file of `tests/golden/kubernetes`, with what only this installation
/// knows, its control plane's fingerprint.
///
/// # Errors
/// If there is no such file, or no pod in it.
pub fn golden(name: &str, fingerprint: &str) -> anyhow::Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/kubernetes").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let body = text.splitn(3, "---\n").nth(2).context("a snapshot has a head")?;
    let text =
        body.replace("--control-fingerprint=sha256:00", &format!("--control-fingerprint={fingerprint}"));
    let mut snapshot: Value = serde_json::from_str(&text)?;
    Ok(snapshot["pod"]["spec"].take())
}

impl<'a> Pod<'a> {
    /// Makes the volumes.
    ///
    /// # Errors
    /// If one can't be made, or is of a kind that this stand-in does not know.
    pub fn new(workload: &'a Workload, spec: Value) -> anyhow::Result<Self> {
        let pod = Self { workload, spec, directory: format!("{PRIVATE}/pod-{}", workload.name()) };
        for volume in list(&pod.spec["volumes"]) {
            pod.make_volume(volume)?;
        }
        Ok(pod)
    }

    fn make_volume(&self, volume: &Value) -> anyhow::Result<()> {
        let path = self.volume(name_of(volume));
        // The kubelet's mode of an emptyDir: a pod's containers may have any UID.
        self.workload.sandbox().directory(&path, 0, 0o777)?;
        for source in list(&volume["projected"]["sources"]) {
            if source["serviceAccountToken"]["audience"].is_string() {
                self.renew_token(&path)?;
            }
        }
        match volume["emptyDir"].is_object() || volume["projected"].is_object() {
            true => Ok(()),
            false => bail!("no volume is made of {volume}"),
        }
    }

    fn renew_token(&self, volume: &str) -> anyhow::Result<()> {
        self.workload.sandbox().write(format!("{volume}/token"), self.workload.token()?)
    }

    fn volume(&self, name: &str) -> String {
        format!("{}/volumes/{name}", self.directory)
    }

    /// Runs an init container to its end.
    ///
    /// # Errors
    /// If there is none of this name, or it does not end.
    pub fn run(&self, container: &str) -> anyhow::Result<Output> {
        self.own(container)?.output(PATIENCE)
    }

    /// Starts a container that is to run on, and waits until its program runs, as a runtime does before it says so.
    ///
    /// # Errors
    /// If there is none of this name, or it can't be started.
    pub fn start(&self, container: &str) -> anyhow::Result<Process> {
        let mut process = self.own(container)?.start(container, &self.log(container))?;
        let deadline = Instant::now() + PATIENCE;
        while !process.pid().is_some_and(|pid| runs(pid, OWN_PROGRAM)) {
            let late = Instant::now() > deadline;
            anyhow::ensure!(process.is_alive() && !late, "{container} does not run:\n{}", process.tail());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(process)
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        let log = format!("{HOME}/logs/{}-{name}.log", self.workload.name());
        self.workload.sandbox().outside(log)
    }

    /// A container of ours, as its spec says it.
    fn own(&self, container: &str) -> anyhow::Result<Inside> {
        let spec = self.container(container)?;
        let command = self.contained(spec, &rights(spec)?).arg(OWN_PROGRAM);
        Ok(command.args(list(&spec["args"]).iter().filter_map(Value::as_str)))
    }

    /// A program in the application's container, with the variables and the volumes that its spec has.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn application(&self, container: &str, program: &str) -> anyhow::Result<Inside> {
        let rights = words(APPLICATION_UID, "-all");
        Ok(self.contained(self.container(container)?, &rights).arg(program))
    }

    /// An application that goes on calling (`steady-client`).
    ///
    /// # Errors
    /// If it can't be started.
    pub fn steady(&self, container: &str, url: &str, args: &[&str]) -> anyhow::Result<Steady> {
        let command = self.application(container, &format!("{APPLICATION}/steady-client"))?;
        let command = command.args(["--url", url, "--name", container]).args(args);
        Ok(Steady::of(command.start_with_lifeline(container, &self.log(container))?))
    }

    /// A program in a debug container: root with what runtimes give, in the pod's network, without any volume.
    #[must_use]
    pub fn debugger(&self, program: &str) -> Inside {
        self.contained(&Value::Null, &words(0, &format!("-all,{DEFAULT_CAPABILITIES}"))).arg(program)
    }

    /// Runs the command of a probe or of a hook in a running container, as that container's user.
    ///
    /// # Errors
    /// If the container has none, or it does not end in its own time.
    pub fn exec(&self, container: &str, process: &Process, probe: &[&str]) -> anyhow::Result<Output> {
        let spec = self.container(container)?;
        let probe = probe.iter().fold(spec, |value, field| &value[field]);
        let command = list(&probe["exec"]["command"]).iter().filter_map(Value::as_str);
        let within = probe["timeoutSeconds"].as_u64().map_or(PATIENCE * 3, Duration::from_secs);
        self.exec_words(container, process, command, within)
    }

    /// The same with words of the caller's own.
    ///
    /// # Errors
    /// If the container does not run, or it does not end within this time.
    pub fn exec_words<'w>(
        &self,
        container: &str,
        process: &Process,
        command: impl IntoIterator<Item = &'w str>,
        within: Duration,
    ) -> anyhow::Result<Output> {
        let pid = process.pid().context("the container does not run")?;
        Inside::beside(pid).args(rights(self.container(container)?)?).args(command).output(within)
    }

    /// What the kubelet is told by a container's readiness probe, which it sends to the pod's address.
    ///
    /// # Errors
    /// If the container has none.
    pub fn readiness(&self, container: &str) -> anyhow::Result<(bool, String)> {
        let probe = &self.container(container)?["readinessProbe"]["httpGet"];
        let (path, port) = (probe["path"].as_str(), probe["port"].as_u64());
        let (path, port) = path.zip(port).context("it has no readiness probe")?;
        let url = format!("http://{}:{port}{path}", self.address()?);
        let curl = self.workload.sandbox().command(Place::Service, As::Root, "curl");
        let output = curl.args(["-s", "--max-time", "2", "-w", "%{http_code}", &url]).output(PATIENCE)?;
        let said = output.text();
        Ok((said.ends_with("200"), said))
    }

    fn address(&self) -> anyhow::Result<String> {
        let command = self.workload.sandbox().command(self.workload.place(), As::Root, "ip");
        let output = command.args(["-4", "-o", "addr", "show", "dev", "eth0"]).output(PATIENCE)?.text();
        let (_, rest) = output.split_once(" inet ").context("the pod has no address")?;
        Ok(rest.split('/').next().unwrap_or_default().to_owned())
    }

    /// A file of a volume, as somebody has it who may read all of the node.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn file(&self, volume: &str, path: &str) -> anyhow::Result<Vec<u8>> {
        let path = format!("{}/{path}", self.volume(volume));
        std::fs::read(self.workload.sandbox().outside(&path)).with_context(|| path)
    }

    fn container(&self, name: &str) -> anyhow::Result<&Value> {
        let all = list(&self.spec["initContainers"]).iter().chain(list(&self.spec["containers"]));
        all.into_iter()
            .find(|container| name_of(container) == name)
            .with_context(|| format!("no container {name}"))
    }

    /// The words before a program that put it into a container.
    fn contained(&self, spec: &Value, rights: &[String]) -> Inside {
        let mounts: Vec<String> = list(&spec["volumeMounts"])
            .iter()
            .map(|mount| {
                let how = if mount["readOnly"] == true { "ro" } else { "rw" };
                let path = mount["mountPath"].as_str().unwrap_or_default();
                format!("{} {path} {how}", self.volume(name_of(mount)))
            })
            .collect();
        let variables = list(&spec["env"]).iter().filter_map(|variable| {
            Some(format!("{}={}", variable["name"].as_str()?, variable["value"].as_str()?))
        });
        self.workload
            .sandbox()
            .command(self.workload.place(), As::Root, "unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", CONTAINER, "sh"])
            .args([PROGRAMS, SERVICE_ROOT, &mounts.join("\n")])
            .args(rights)
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
            .args(variables)
    }
}

/// Run in a mount and process namespace of its own. Its arguments are where our programs are, the root that the image
/// trusts beside the public ones, the volumes (`FROM TO ro|rw`, one a line), and the program.
const CONTAINER: &str = r#"
set -eu
programs=$1; trusted=$2; mounts=$3; shift 3
root=/tmp
mount -t tmpfs -o mode=0755 image "$root"
for path in /usr /bin /sbin /lib /lib32 /lib64 /libx32 /etc; do
    if [ -L "$path" ]; then cp -P "$path" "$root$path"
    elif [ -d "$path" ]; then
        mkdir "$root$path"
        mount --rbind "$path" "$root$path"
        mount -o remount,bind,ro "$root$path"
    fi
done
mount -t tmpfs -o mode=0755 trusted "$root/etc/ssl"
mkdir "$root/etc/ssl/certs"
cp "$trusted" "$root/etc/ssl/certs/ca-certificates.crt"
mkdir "$root/proc" "$root/dev" "$root/tmp" "$root/run" "$root/var" "$root/app"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
for device in null zero random urandom; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
: > "$root/countersign-proxy"
mount --bind "$programs/countersign-proxy" "$root/countersign-proxy"
mount --bind "$programs" "$root/app"
while read -r from to how; do
    [ -n "$from" ] || continue
    mkdir -p "$root$to"
    mount --bind "$from" "$root$to"
    [ "$how" = rw ] || mount -o remount,bind,ro "$root$to"
done <<END
$mounts
END
mount -o remount,ro "$root"
exec chroot "$root" "$@"
"#;

/// What a security context says, as words before a program.
fn rights(spec: &Value) -> anyhow::Result<Vec<String>> {
    let context = &spec["securityContext"];
    let uid = context["runAsUser"].as_u64().context("it has no UID of its own")?;
    let mut capabilities = "-all".to_owned();
    for added in list(&context["capabilities"]["add"]).iter().filter_map(Value::as_str) {
        capabilities = format!("{capabilities},+{}", added.to_ascii_lowercase());
    }
    Ok(words(u32::try_from(uid)?, &capabilities))
}

fn words(uid: u32, capabilities: &str) -> Vec<String> {
    let ids = format!("setpriv --reuid={uid} --regid={uid} --clear-groups --inh-caps=-all --no-new-privs");
    let mut all: Vec<String> = ids.split(' ').map(str::to_owned).collect();
    all.push(format!("--bounding-set={capabilities}"));
    all
}

fn runs(pid: u32, program: &str) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).next() == Some(program.as_bytes())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn name_of(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}
