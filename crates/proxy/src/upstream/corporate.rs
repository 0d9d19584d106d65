//! A corporate proxy, through which upstreams are reached by CONNECT (RFC 9110 §9.3.6) where there is no other way out.
//!
//! It carries tunnels and nothing else: a destination's TLS is verified through it, end to end.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use ipnet::IpNet;
use model::{Code, Failure, HostName, Secret};
use protocols::connect;
use protocols::http::{Host, parse_authority};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes of the head of its answer at most.
const ANSWER_MAX: usize = 16 * 1024;

/// Where it is, what it wants to know of us, and what does not go through it.
#[derive(Debug)]
pub struct Corporate {
    /// Its host.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// `Basic` and what follows it, if it wants a credential.
    authorization: Option<Secret>,
    except: Vec<Except>,
}

/// What is reached without it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Except {
    /// This name.
    Name(HostName),
    /// All names below this one.
    Below(HostName),
    /// These addresses.
    Network(IpNet),
}

impl Corporate {
    /// By its URL (`http://host:port`), a file with `user:password`, and the names, `.suffixes` and networks that are
    /// reached without it.
    ///
    /// # Errors
    /// If one of them is not what it should be.
    pub fn new(url: &str, credential: Option<&Path>, except: &[String]) -> anyhow::Result<Self> {
        let authority = url.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let authority = authority.with_context(|| format!("`{url}` must begin with http://"))?;
        ensure!(
            !authority.contains('@'),
            "the credential must be in a file: --upstream-proxy-credential-file"
        );
        let parsed = parse_authority(authority).map_err(|e| anyhow::anyhow!("`{url}`: {e}"))?;
        let port = parsed.port.filter(|port| *port > 0);
        let port = port.with_context(|| format!("`{url}` names no port"))?;
        let authorization = credential.map(read_credential).transpose()?;
        let except = except.iter().map(|text| Except::new(text.trim())).collect::<Result<_, _>>()?;
        Ok(Self { host: parsed.host, port, authorization, except })
    }

    /// Whether a name is reached without it.
    #[must_use]
    pub fn exempts_name(&self, name: &HostName) -> bool {
        self.except.iter().any(|except| match except {
            Except::Name(known) => known == name,
            Except::Below(parent) => {
                name.as_str().strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            Except::Network(_) => false,
        })
    }

    /// Whether an address is reached without it.
    #[must_use]
    pub fn exempts_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let listed =
            |except: &Except| matches!(except, Except::Network(network) if network.contains(&address));
        self.except.iter().any(listed)
    }

    /// Asks for a tunnel to `target` (`host:port`) on a connection to it.
    ///
    /// # Errors
    /// [`Code::UpstreamProxyRefused`] if it says no, [`Code::UpstreamProxyUnusable`] if it can't be understood, and as for
    /// dialling if it can't reach the destination.
    pub async fn tunnel(&self, stream: &mut TcpStream, target: &str) -> Result<(), Failure> {
        let broken = |e: std::io::Error| {
            Failure::new(Code::UpstreamProxyUnusable, "the corporate proxy closed the connection").because(e)
        };
        stream.write_all(self.request(target).expose()).await.map_err(broken)?;
        let status = answer(stream).await?;
        match status {
            200..=299 => Ok(()),
            407 => {
                let detail = format!("the corporate proxy wants another credential for {target} (407)");
                Err(Failure::new(Code::UpstreamProxyRefused, detail))
            }
            400..=499 => {
                let detail = format!("the corporate proxy refuses {target} ({status})");
                Err(Failure::new(Code::UpstreamProxyRefused, detail))
            }
            504 => {
                let detail = format!("the corporate proxy did not reach {target} in time (504)");
                Err(Failure::new(Code::UpstreamTimeout, detail))
            }
            500..=599 => {
                let detail = format!("the corporate proxy can't reach {target} ({status})");
                Err(Failure::new(Code::UpstreamUnreachable, detail))
            }
            _ => {
                let detail = format!("the corporate proxy answered {status} to CONNECT");
                Err(Failure::new(Code::UpstreamProxyUnusable, detail))
            }
        }
    }

    fn request(&self, target: &str) -> Secret {
        let mut bytes = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            bytes.extend_from_slice(b"Proxy-Authorization: ");
            bytes.extend_from_slice(authorization.expose());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        Secret::new(bytes)
    }
}

/// Reads the head of the answer, and not one byte of what follows it.
async fn answer(stream: &mut TcpStream) -> Result<u16, Failure> {
    let unusable = |detail: &str| Failure::new(Code::UpstreamProxyUnusable, detail);
    let mut head = Vec::new();
    let mut looked = [0; 2048];
    while head.len() < ANSWER_MAX {
        let there = stream
            .peek(&mut looked)
            .await
            .map_err(|e| unusable("the corporate proxy broke off").because(e))?;
        if there == 0 {
            return Err(unusable("the corporate proxy closed the connection"));
        }
        let before = head.len();
        head.extend_from_slice(&looked[..there]);
        let read = connect::answer(&head).map_err(|e| unusable(&format!("the corporate proxy: {e}")))?;
        let taken = read.map_or(there, |answer| answer.length - before);
        let taking = stream.read_exact(&mut looked[..taken]).await;
        taking.map_err(|e| unusable("the corporate proxy broke off").because(e))?;
        if let Some(answer) = read {
            return Ok(answer.status);
        }
    }
    Err(unusable("the corporate proxy's answer has no end"))
}

fn read_credential(path: &Path) -> anyhow::Result<Secret> {
    let content = Secret::new(std::fs::read(path).with_context(|| path.display().to_string())?);
    let pair = content.expose().trim_ascii_end();
    // RFC 7617 §2: the user has no colon, neither has control characters.
    ensure!(pair.iter().skip(1).any(|byte| *byte == b':'), "{} must hold user:password", path.display());
    ensure!(!pair.iter().any(u8::is_ascii_control), "{} holds control characters", path.display());
    let encoded = Secret::new(base64::engine::general_purpose::STANDARD.encode(pair).into_bytes());
    Ok(Secret::new([b"Basic ", encoded.expose()].concat()))
}

impl Except {
    fn new(text: &str) -> anyhow::Result<Self> {
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Self::Network(network));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        let below = text.strip_prefix("*.").or_else(|| text.strip_prefix('.'));
        match (below.map(HostName::new), HostName::new(text)) {
            (Some(Ok(parent)), _) => Ok(Self::Below(parent)),
            (None, Ok(name)) => Ok(Self::Name(name)),
            _ => bail!("`{text}` is not a name, a .suffix, an address or a network"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corporate(except: &[&str]) -> Corporate {
        let except: Vec<String> = except.iter().map(ToString::to_string).collect();
        Corporate::new("http://proxy.example:3128/", None, &except).unwrap()
    }

    #[test]
    fn what_does_not_go_through_it() {
        let corporate =
            corporate(&["Direct.example.", ".below.example", "*.star.example", "10.0.0.0/8", "fd00::1"]);
        let name = |text: &str| corporate.exempts_name(&HostName::new(text).unwrap());
        assert!(
            name("direct.example")
                && name("a.below.example")
                && name("a.b.below.example")
                && name("a.star.example")
        );
        assert!(
            !name("a.direct.example")
                && !name("below.example")
                && !name("xbelow.example")
                && !name("other.example")
        );
        let address = |text: &str| corporate.exempts_address(text.parse().unwrap());
        assert!(address("10.1.2.3") && address("::ffff:10.1.2.3") && address("fd00::1"));
        assert!(!address("11.1.2.3") && !address("fd00::2"));
    }

    #[test]
    fn what_can_not_be_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("credential");
        let new = |url: &str, except: &str| Corporate::new(url, Some(&file), &[except.to_owned()]);
        std::fs::write(&file, "user:pass word\n").unwrap();
        let good = new("http://[fd00::1]:3128", "a.example").unwrap();
        let request = good.request("a.example:443");
        let text = std::str::from_utf8(request.expose()).unwrap();
        assert!(text.ends_with("\r\nProxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n\r\n"), "{text}");
        assert!(!format!("{good:?}").contains("dXNlc"), "{good:?}");
        for (url, except, why) in [
            ("https://a.example:1", "a", "must begin with http://"),
            ("http://a.example", "a", "names no port"),
            ("http://u:p@a.example:1", "a", "must be in a file"),
            ("http://a.example:1/path", "a", "no port"),
            ("http://a.example:1", "10.0.0.0/33", "is not a name"),
        ] {
            let error = format!("{:#}", new(url, except).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
        for bad in ["", "user", ":password", "user:pass\r\nword"] {
            std::fs::write(&file, bad).unwrap();
            assert!(new("http://a.example:1", "a").is_err(), "{bad:?}");
        }
    }
}
