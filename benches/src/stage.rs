//! Everything that is measured, in namespaces of its own: an upstream, the control plane, the proxy, its rivals, and an
//! application for each of them.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::daemon::{Daemon, Recipe};
use tests::sandbox::{As, HOME, Mode, PRIVATE};
use tests::workload::{Evidence, Workload};
use tests::world::{Egress, PAYMENTS, World};

use crate::documents;
use crate::measure::{self, PROXY_CPU};
use crate::rivals::{Kind, Rival};

/// What the upstream answers with, in bytes.
pub(crate) const BODY_BYTES: usize = 1024;

/// Time for events to be delivered.
const DELIVERY: Duration = Duration::from_secs(60);

/// The whole.
pub(crate) struct Stage {
    world: World,
    _upstream: Daemon,
    /// An application without a proxy.
    pub(crate) direct: Workload,
    /// An application and our proxy.
    pub(crate) ours: Workload,
    /// Where the proxy's audit spool is: on a disk, which the rest of the stage is not.
    spool: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut world = World::new()?;
        anyhow::ensure!(
            world.mode() == Mode::Root,
            "the bench needs to be root: it pins programs to cores and gives them precedence"
        );
        world.start_issuer()?;
        let upstream = upstream(&world)?;
        world.start_control(Egress::Enforce)?;
        // In life it is on another machine: it must not take the application's core while that calls.
        measure::give_way(world.control().process().pid().context("the control plane has ended")?)?;
        world.apply_quickstart()?;
        world.apply(&documents::nine_more_policies())?;
        let direct = world.workload("direct", Evidence::pod("payments", "direct"))?;
        let spool = tempfile::Builder::new().prefix("bench-spool-").tempdir_in(beside_the_program()?)?;
        let ours = world.workload("billing", Evidence::billing())?;
        let mut stage = Self { world, _upstream: upstream, direct, ours, spool };
        stage.start_ours()?;
        stage.ours.redirect()?;
        Ok(stage)
    }

    /// Our proxy, with one worker (the harness says so), on its core.
    fn start_ours(&mut self) -> anyhow::Result<()> {
        let spool = self.spool.path().join("spool");
        let uid = self.ours.proxy_uid();
        std::fs::create_dir(&spool)?;
        for path in [self.spool.path(), &spool] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid))?;
        }
        self.ours.start_proxy()?;
        let proxy = self.ours.proxy();
        proxy.restart_with(|args| {
            let at = args.iter().position(|arg| arg == "--spool").map_or(args.len(), |at| at + 1);
            args[at] = spool.display().to_string();
        })?;
        proxy.wait_until_ready()?;
        measure::pin(self.our_pid()?, PROXY_CPU)
    }

    /// Our proxy anew, with nothing left of what it has carried.
    pub(crate) fn restart_ours(&mut self) -> anyhow::Result<()> {
        let proxy = self.ours.proxy();
        proxy.restart_with(|_| ())?;
        proxy.wait_until_ready()?;
        measure::pin(self.our_pid()?, PROXY_CPU)
    }

    pub(crate) fn our_pid(&mut self) -> anyhow::Result<u32> {
        self.ours.proxy().process().pid().context("the proxy has ended")
    }

    /// Waits until the proxy has delivered all that it has recorded: that is part of what a request costs.
    pub(crate) fn settle(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DELIVERY;
        // The gauge is set ten times a second.
        std::thread::sleep(Duration::from_millis(150));
        while self.ours.proxy().metric("countersign_spool_events", "")? > 0.0 {
            anyhow::ensure!(Instant::now() < deadline, "the proxy's events were not delivered");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Another proxy in a namespace like ours: its application's calls are redirected to it as they are to ours.
    pub(crate) fn rival(&mut self, kind: Kind) -> anyhow::Result<Rival> {
        let name = kind.name();
        let workload = self.world.workload(name, Evidence::pod("payments", name))?;
        workload.redirect()?;
        Rival::start(kind, workload)
    }
}

/// The directory of this program: on a disk that is there for builds.
fn beside_the_program() -> anyhow::Result<std::path::PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.parent().context("no directory")?.to_owned())
}

/// nginx, answering every request with the same kilobyte; 401 to whoever brings no credential and does not say that it
/// comes directly.
fn upstream(world: &World) -> anyhow::Result<Daemon> {
    let file = |name: &str| format!("{PRIVATE}/{PAYMENTS}/{name}.pem");
    let (certificate, key, body) = (file("certificate"), file("key"), "x".repeat(BODY_BYTES));
    let server = format!(
        "map '$http_authorization$http_x_direct' $known {{ '' 0; default 1; }}
         server {{
            listen 443 ssl http2; listen [::]:443 ssl http2;
            ssl_certificate {certificate}; ssl_certificate_key {key};
            ssl_protocols TLSv1.2 TLSv1.3;
            keepalive_requests 100000000; keepalive_timeout 300s; http2_max_concurrent_streams 256;
            location / {{
                default_type text/plain;
                if ($known = 0) {{ return 401; }}
                return 200 '{body}';
            }}
        }}"
    );
    nginx(world.sandbox(), "upstream", None, As::Root, &server)
}

/// Starts an nginx of one worker with this server.
pub(crate) fn nginx(
    sandbox: &std::sync::Arc<tests::sandbox::Sandbox>,
    name: &str,
    client: Option<String>,
    who: As,
    server: &str,
) -> anyhow::Result<Daemon> {
    tests::sandbox::find("nginx").context("`make bench` installs what it needs")?;
    let (file, temporary) = (format!("{HOME}/etc/{name}.conf"), format!("/tmp/{name}"));
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {temporary}-{kind};\n"))
        .concat();
    let configuration = format!(
        "worker_processes 1; pid {temporary}.pid; error_log stderr warn; daemon off;
         events {{ worker_connections 8192; multi_accept on; }}
         http {{ access_log off; tcp_nodelay on; {paths} {server} }}"
    );
    sandbox.write(&file, configuration)?;
    let recipe = Recipe {
        name: name.to_owned(),
        client,
        who,
        program: "nginx",
        args: ["-c", &file, "-e", "stderr"].map(str::to_owned).to_vec(),
        probe: None,
    };
    start(sandbox, recipe)
}

/// Starts a program that says nothing when it is ready.
pub(crate) fn start(
    sandbox: &std::sync::Arc<tests::sandbox::Sandbox>,
    recipe: Recipe,
) -> anyhow::Result<Daemon> {
    let mut daemon = Daemon::start(sandbox, recipe)?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    anyhow::ensure!(daemon.process().is_alive(), "it has ended:\n{}", daemon.process().tail());
    Ok(daemon)
}
