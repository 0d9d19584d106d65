//! What a start-up probe and a pre-stop hook run beside a proxy, so that its image needs no other program.
//!
//! A probe that waits inside sees readiness at once; one that is asked again every second sees it half a second late.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// For one answer of the proxy's.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits until the proxy is ready.
///
/// # Errors
/// If it is not by then; the message says what it still waits for.
pub fn ready(health: SocketAddr, wait: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        let missing = match get(health, "/readyz") {
            Ok((200, _)) => return Ok(()),
            Ok((_, body)) => body.trim().to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= deadline {
            bail!("the proxy is not ready after {} s: {missing}", wait.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until the application has had no connection for `quiet`, or the deadline is over; both are an end.
///
/// # Errors
/// If the proxy can't be asked.
pub fn quiet(health: SocketAddr, quiet: Duration, deadline: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + deadline;
    let mut since = Instant::now();
    while Instant::now() < until && since.elapsed() < quiet {
        let (_, metrics) = get(health, "/metrics")?;
        if open_connections(&metrics).context("the proxy does not say how many connections are open")? > 0 {
            since = Instant::now();
        }
        std::thread::sleep(PAUSE * 5);
    }
    Ok(())
}

fn open_connections(metrics: &str) -> Option<u64> {
    metrics.lines().find_map(|line| line.strip_prefix("countersign_connections_open ")?.trim().parse().ok())
}

fn get(health: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&health, PATIENCE)
        .with_context(|| format!("nobody answers at {health}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{health} did not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the answer is not HTTP")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn serves(answers: Vec<&'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 512]);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn it_waits_until_the_proxy_is_ready_and_says_what_is_missing() {
        let not_yet = "HTTP/1.1 503 Service Unavailable\r\n\r\nwaiting for: first policy\n";
        let address = serves(vec![not_yet, not_yet, "HTTP/1.1 200 OK\r\n\r\nready\n"]);
        ready(address, Duration::from_secs(5)).unwrap();
        let error = ready(serves(vec![not_yet]), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("first policy"), "{error}");
    }

    #[test]
    fn it_waits_until_the_application_has_gone() {
        let with = "HTTP/1.1 200 OK\r\n\r\ncountersign_connections_open 2\n";
        let without = "HTTP/1.1 200 OK\r\n\r\n# TYPE\ncountersign_connections_open 0\n";
        let address = serves(vec![with, with, without, without, without, without]);
        quiet(address, Duration::from_millis(150), Duration::from_secs(5)).unwrap();
    }
}
