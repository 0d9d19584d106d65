//! A world of its own for a test: network namespaces, mounts and processes that end with us, however we end.
//!
//! One process holds the namespaces: `unshare … sh -c '…; exec cat'`, whose standard input is a pipe of ours. When we
//! are gone (done, Ctrl-C, SIGKILL) the pipe closes, `cat` ends, and with the first process of a PID namespace the
//! kernel ends all others. Everything that is written lies on a tmpfs of the same mount namespace. So no process,
//! namespace, rule or file stays.
//!
//! The namespace that holds the others is the service's; each client has one more, joined to it by its own veth pair:
//! 10.77.N.0/24 and fd77:N::/64, the service's side at 1, the client's at 2. What the service's side offers has
//! addresses of its own there, 10.77.0.x and fd77::x, the same for every client.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};

/// Where everything lies, inside.
pub const HOME: &str = "/run/countersign";
/// What a client does not see: states, keys, sockets, tokens.
pub const PRIVATE: &str = "/run/countersign/private";
/// Our programs, inside.
pub const PROGRAMS: &str = "/run/countersign/bin";

/// Time for making the namespaces.
const SETUP: Duration = Duration::from_secs(60);
/// Time for a command that is not a test's subject.
const COMMAND: Duration = Duration::from_secs(60);

/// With which rights the namespaces were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By root: the proxy has a UID of its own and is exempt by it.
    Root,
    /// In a user namespace, which has one UID: the proxy is exempt by its mark, and its client has no capabilities.
    Rootless,
}

/// The namespaces, and the process that holds them.
#[derive(Debug)]
pub struct Sandbox {
    mode: Mode,
    holder: Child,
    /// The holder ends when this is closed.
    lifeline: Option<ChildStdin>,
    /// First process of the PID namespace, as seen from outside.
    init: u32,
    clients: Mutex<Vec<String>>,
    hosts: Mutex<Vec<(String, u8)>>,
}

/// A network namespace inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Where the services are.
    Service,
    /// A client's, by name.
    Client(&'a str),
}

/// As whom a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// Root of the sandbox, for setting up.
    Root,
    /// A proxy: its own UID and no capabilities; rootless, with the one capability that setting a mark needs.
    Proxy(u32),
    /// An application: its own UID, no capabilities and no way to new ones, in a mount and PID namespace of its own
    /// that shows nothing of [`PRIVATE`].
    Application(u32),
}

impl Sandbox {
    /// As root if we are, else in a user namespace.
    ///
    /// # Errors
    /// If namespaces can't be made here; the message says what would help.
    pub fn new() -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Self::in_mode(Mode::Rootless);
        }
        Self::in_mode(Mode::Root).or_else(|refused| {
            Self::in_mode(Mode::Rootless).map_err(|too| refused.context(format!("and rootless: {too:#}")))
        })
    }

    /// In a user namespace, also if we are root: as any user has it.
    ///
    /// # Errors
    /// If namespaces can't be made here; the message says what would help.
    pub fn rootless() -> anyhow::Result<Self> {
        Self::in_mode(Mode::Rootless)
    }

    fn in_mode(mode: Mode) -> anyhow::Result<Self> {
        for tool in ["unshare", "nsenter", "setpriv", "ip", "mount"] {
            find(tool).with_context(|| format!("{tool} is missing: install util-linux and iproute2"))?;
        }
        let programs = programs()?;
        let mut command = Command::new("unshare");
        if mode == Mode::Rootless {
            command.args(["--user", "--map-root-user"]);
        }
        command
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .args(["sh", "-c", SET_UP, "sh"])
            .arg(&programs)
            .arg(crate::clients::directory(&programs))
            .arg(crate::clients::sources())
            .arg(crate::cluster::directory(&programs).join("current"))
            .env("PATH", path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut holder = command.spawn().context("could not start unshare")?;
        let lifeline = holder.stdin.take();
        if let Err(error) = wait_for_set_up(&mut holder) {
            let _ = holder.kill();
            let _ = holder.wait();
            return Err(error.context(NO_NAMESPACES));
        }
        let init = *children(holder.id()).first().context("unshare has no child")?;
        Ok(Self { mode, holder, lifeline, init, clients: Mutex::default(), hosts: Mutex::default() })
    }

    /// With which rights it was made.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Its first process, as seen from outside; when that ends, all others do.
    #[must_use]
    pub fn init(&self) -> u32 {
        self.init
    }

    /// A file inside, as it can be opened from outside.
    #[must_use]
    pub fn outside(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new("/proc")
            .join(self.init.to_string())
            .join("root")
            .join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Writes a file inside, with its directories.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, inside: impl AsRef<Path>, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let path = self.outside(&inside);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(&path, content)
            .with_context(|| format!("could not write {}", inside.as_ref().display()))
    }

    /// Reads a file inside.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn read(&self, inside: impl AsRef<Path>) -> anyhow::Result<String> {
        let path = self.outside(&inside);
        std::fs::read_to_string(path).with_context(|| format!("could not read {}", inside.as_ref().display()))
    }

    /// Makes a directory inside that only this UID can enter.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn private_directory(&self, inside: impl AsRef<Path>, uid: u32) -> anyhow::Result<()> {
        self.directory(inside, uid, 0o700)
    }

    /// Makes a directory inside.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn directory(&self, inside: impl AsRef<Path>, uid: u32, mode: u32) -> anyhow::Result<()> {
        let path = self.outside(&inside);
        std::fs::create_dir_all(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        self.give(inside, uid)
    }

    /// Gives a file to a UID; rootless there is only one.
    ///
    /// # Errors
    /// If it can't be given.
    pub fn give(&self, inside: impl AsRef<Path>, uid: u32) -> anyhow::Result<()> {
        if self.mode == Mode::Root {
            std::os::unix::fs::chown(self.outside(&inside), Some(uid), Some(uid))
                .with_context(|| format!("could not give away {}", inside.as_ref().display()))?;
        }
        Ok(())
    }

    /// Makes a client's namespace, and its veth pair to the service's.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn add_client(&self, name: &str) -> anyhow::Result<()> {
        let number = {
            let mut clients = self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            clients.push(name.to_owned());
            clients.len()
        };
        let script = format!(
            "set -e\n\
             ip netns add {name}\n\
             ip link add veth{number} type veth peer name eth0 netns {name}\n\
             ip addr add 10.77.{number}.1/24 dev veth{number}\n\
             ip -6 addr add fd77:{number}::1/64 dev veth{number} nodad\n\
             ip link set veth{number} up\n\
             ip -n {name} link set lo up\n\
             ip -n {name} addr add 10.77.{number}.2/24 dev eth0\n\
             ip -n {name} -6 addr add fd77:{number}::2/64 dev eth0 nodad\n\
             ip -n {name} link set eth0 up\n\
             ip -n {name} route add default via 10.77.{number}.1\n\
             ip -n {name} -6 route add default via fd77:{number}::1\n"
        );
        self.script(Place::Service, &script).with_context(|| format!("could not make the namespace {name}"))
    }

    /// Gives a name to 10.77.0.`host` and fd77::`host`, which the service's side then has.
    ///
    /// # Errors
    /// If the address can't be added or the hosts file not written.
    pub fn add_host(&self, name: &str, host: u8) -> anyhow::Result<()> {
        let text = {
            let mut hosts = self.hosts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            hosts.retain(|(known, _)| known != name);
            hosts.push((name.to_owned(), host));
            hosts_file(&hosts)
        };
        // Written in place: what is mounted on /etc/hosts is this very file.
        self.write(format!("{HOME}/etc/hosts"), text)?;
        let script = format!(
            "ip addr replace 10.77.0.{host}/32 dev lo && ip -6 addr replace fd77::{host:x}/128 dev lo nodad\n"
        );
        self.script(Place::Service, &script)
    }

    /// Runs a shell script as the sandbox's root.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn script(&self, place: Place<'_>, script: &str) -> anyhow::Result<()> {
        let output = self.command(place, As::Root, "sh").args(["-c", script]).output(COMMAND)?;
        if !output.success() {
            bail!("{}", output.stderr.trim());
        }
        Ok(())
    }

    /// A command to be run inside.
    #[must_use]
    pub fn command(&self, place: Place<'_>, who: As, program: impl AsRef<OsStr>) -> Inside {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string());
        if self.mode == Mode::Rootless {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--mount", "--pid"]);
        match place {
            Place::Service => command.arg("--net"),
            Place::Client(name) => {
                // Opened before the mount namespace is entered, so by the path from outside.
                let mut net = OsString::from("--net=");
                net.push(self.outside(format!("/run/netns/{name}")));
                command.arg(net)
            }
        };
        command.arg("--").args(self.rights(who)).arg(program.as_ref());
        command.env_clear().env("PATH", path()).env("LANG", "C.UTF-8").env("HOME", format!("{HOME}/home"));
        command.stdin(Stdio::null());
        Inside { command }
    }

    /// The words before a program that give it its rights.
    fn rights(&self, who: As) -> Vec<String> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let ids = |uid: u32| match self.mode {
            Mode::Root => words(&format!("--reuid={uid} --regid={uid} --clear-groups")),
            Mode::Rootless => Vec::new(),
        };
        match who {
            As::Root => Vec::new(),
            As::Proxy(uid) => {
                let bounding = match self.mode {
                    Mode::Root => "--bounding-set=-all",
                    Mode::Rootless => "--bounding-set=-all,+net_admin",
                };
                let mut all = words("setpriv --inh-caps=-all --no-new-privs");
                all.push(bounding.to_owned());
                all.extend(ids(uid));
                all
            }
            As::Application(uid) => {
                let mut all = words("unshare --mount --pid --fork --kill-child --mount-proc -- sh -c");
                let script = format!("mount -t tmpfs -o ro,size=4k,mode=0 tmpfs {PRIVATE} && exec \"$@\"");
                all.extend([script, "sh".to_owned()]);
                all.extend(words("setpriv --inh-caps=-all --no-new-privs --bounding-set=-all"));
                all.extend(ids(uid));
                all
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if matches!(self.holder.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

const NO_NAMESPACES: &str = "could not make namespaces: run as root (in a container with SYS_ADMIN and NET_ADMIN), or \
    allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
    kernel.apparmor_restrict_unprivileged_userns=0)";

/// Run by the first process of the namespaces. Its arguments are where our programs are, where the real clients are, if
/// they are installed, and the programs that use them.
const SET_UP: &str = r#"
set -eu
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/netns
mkdir -p /run/countersign/bin /run/countersign/etc /run/countersign/logs /run/countersign/pki /run/countersign/trust
mkdir -m 0777 /run/countersign/home
mkdir -m 0711 /run/countersign/private
mount --bind "$1" /run/countersign/bin
mkdir /run/countersign/clients
[ ! -d "$2" ] || mount --bind "$2" /run/countersign/clients
mkdir -p /run/countersign/clients/source
[ ! -d "$3" ] || mount --bind "$3" /run/countersign/clients/source
mkdir /run/countersign/kubernetes
[ ! -d "$4" ] || mount --bind "$4" /run/countersign/kubernetes
mount -t tmpfs -o mode=1777 tmpfs /tmp
printf '127.0.0.1 localhost\n::1 localhost\n' > /run/countersign/etc/hosts
mount --bind /run/countersign/etc/hosts /etc/hosts
# No resolver: every name that is needed is in the hosts file. A link into /run points at nothing by now.
printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' > /run/countersign/etc/resolv.conf
target=$(readlink -m /etc/resolv.conf)
[ -e "$target" ] || { mkdir -p "$(dirname "$target")"; : > "$target"; }
mount --bind /run/countersign/etc/resolv.conf "$target"
ip link set lo up
echo ready
exec cat > /dev/null
"#;

fn wait_for_set_up(holder: &mut Child) -> anyhow::Result<()> {
    let stdout = holder.stdout.take().context("no pipe")?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        let _ = sender.send(line);
    });
    match receiver.recv_timeout(SETUP) {
        Ok(line) if line.trim() == "ready" => Ok(()),
        Ok(_) => {
            let mut said = String::new();
            if let Some(mut stderr) = holder.stderr.take() {
                let _ = stderr.read_to_string(&mut said);
            }
            bail!("{}", said.trim())
        }
        Err(_) => bail!("nothing happened for {} s", SETUP.as_secs()),
    }
}

fn hosts_file(hosts: &[(String, u8)]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    for (name, host) in hosts {
        let _ = write!(text, "10.77.0.{host} {name}\nfd77::{host:x} {name}\n");
    }
    text
}

/// A command that runs inside, or here.
#[derive(Debug)]
pub struct Inside {
    command: Command,
}

impl Inside {
    /// A command outside of every sandbox: as this process, with nothing of its environment but PATH.
    #[must_use]
    pub fn here(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", path()).env("LANG", "C.UTF-8").stdin(Stdio::null());
        Self { command }
    }

    /// A command in all namespaces and at the root of a process (its PID as seen from outside), as a container runtime
    /// runs a probe.
    #[must_use]
    pub fn beside(pid: u32) -> Self {
        let nsenter = Self::here("nsenter").args(["--mount", "--pid", "--net", "--root", "--wd", "--target"]);
        nsenter.arg(pid.to_string()).arg("--")
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// A variable of its environment, which is otherwise empty but for PATH, LANG and HOME.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// If it can't be started, or has not ended by then; it is ended in that case.
    pub fn output(mut self, within: Duration) -> anyhow::Result<Output> {
        let shown = format!("{:?}", self.command.get_args().last().unwrap_or_default());
        let mut child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let deadline = Instant::now() + within;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                kill_tree(child.id());
                let _ = child.wait();
                bail!("… {shown} did not end within {} s", within.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let text = |reader: std::thread::JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
        Ok(Output {
            exit: status.code().unwrap_or(-1),
            stdout: text(stdout),
            stderr: String::from_utf8_lossy(&text(stderr)).into_owned(),
        })
    }

    /// Starts it and lets it run; what it writes is appended to the log, a file outside (see [`Sandbox::outside`]).
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(mut self, name: &str, log: &Path) -> anyhow::Result<Process> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        self.command.stdout(file.try_clone()?).stderr(file);
        let child = self.command.spawn().with_context(|| format!("could not start {name}"))?;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned(), lifeline: None })
    }

    /// The same for a program that ends when its standard input does.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_with_lifeline(mut self, name: &str, log: &Path) -> anyhow::Result<Process> {
        self.command.stdin(Stdio::piped());
        let mut process = self.start(name, log)?;
        process.lifeline = process.child.stdin.take();
        Ok(process)
    }
}

fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// What a command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code; -1 if a signal ended it.
    pub exit: i32,
    /// What it said.
    pub stdout: Vec<u8>,
    /// What it said beside.
    pub stderr: String,
}

impl Output {
    /// Whether it ended well.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit == 0
    }

    /// What it said, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A program that runs inside, until it is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    /// `nsenter`, which waits for the program and passes on its exit code.
    child: Child,
    log: PathBuf,
    lifeline: Option<ChildStdin>,
}

impl Process {
    /// Its PID as seen from outside: the innermost of the processes that lead to it; outside of a sandbox none do.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let mut pid = self.child.id();
        while let Some(child) = children(pid).first() {
            pid = *child;
        }
        Some(pid)
    }

    /// Ends it without a warning, as the kernel does when memory is short.
    ///
    /// `nsenter` ends when the program has: by then its sockets are closed and its locks free.
    pub fn kill9(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            children(self.child.id()).into_iter().for_each(kill_tree);
            std::thread::sleep(Duration::from_millis(2));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            kill_tree(self.child.id());
            let _ = self.child.wait();
        }
    }

    /// Asks it to end (SIGTERM), and says with which exit code it did.
    ///
    /// # Errors
    /// If it has not ended by then; it is ended in that case.
    pub fn terminate(&mut self, within: Duration) -> anyhow::Result<i32> {
        if let Some(pid) = self.pid() {
            signal(pid, Signal::TERM);
        }
        self.wait(within)
    }

    /// Closes its standard input and waits for its end.
    ///
    /// # Errors
    /// If it has not ended by then; it is ended in that case.
    pub fn finish(&mut self, within: Duration) -> anyhow::Result<i32> {
        drop(self.lifeline.take());
        self.wait(within)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal_: Signal) {
        if let Some(pid) = self.pid() {
            signal(pid, signal_);
        }
    }

    fn wait(&mut self, within: Duration) -> anyhow::Result<i32> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill9();
        bail!("{} did not end within {} s\n{}", self.name, within.as_secs(), self.tail())
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has written so far.
    #[must_use]
    pub fn logs(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of that.
    #[must_use]
    pub fn tail(&self) -> String {
        let logs = self.logs();
        let lines: Vec<_> = logs.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Ends a sandbox by its first process (see [`Sandbox::init`]); says whether it has ended.
#[must_use]
pub fn end(init: u32) -> bool {
    signal(init, Signal::KILL);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Path::new(&format!("/proc/{init}/ns/net")).exists() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Where our programs are: `COUNTERSIGN_BIN_DIR`, or beside the program or test that runs.
///
/// # Errors
/// If there is no countersign-proxy there.
pub fn programs() -> anyhow::Result<PathBuf> {
    let directory = match std::env::var_os("COUNTERSIGN_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let program = std::env::current_exe()?;
            let directory = program.parent().context("no directory")?;
            // Tests lie in `deps`, one below.
            match directory.file_name() {
                Some(name) if name == "deps" => directory.parent().context("no directory")?.to_owned(),
                _ => directory.to_owned(),
            }
        }
    };
    for program in ["countersign-proxy", "countersign-control", "countersign", "payments-api", "token-issuer"]
    {
        anyhow::ensure!(
            directory.join(program).exists(),
            "{} is missing in {}: run `cargo build --workspace --bins`, or set COUNTERSIGN_BIN_DIR",
            program,
            directory.display()
        );
    }
    Ok(directory.canonicalize()?)
}

/// The program's path, if it is installed.
///
/// # Errors
/// If it is not.
pub fn find(program: &str) -> anyhow::Result<PathBuf> {
    std::env::split_paths(&path())
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{program} is not installed"))
}

/// PATH, with the places where administration's tools are, which a user's may lack.
fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// The processes that a process has started.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Ends a process and all that it started, the innermost first.
fn kill_tree(pid: u32) {
    for child in children(pid) {
        kill_tree(child);
    }
    signal(pid, Signal::KILL);
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}
