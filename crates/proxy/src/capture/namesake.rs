//! Notices that somebody else runs with the proxy's UID: to the kernel it is the proxy, so its calls go around it.
//!
//! `/proc/net/tcp` lists the sockets of the network namespace with their owner, and needs no capability to be read. A
//! socket of our UID that is none of ours is another process's. Connections that come and go between two looks are not
//! seen.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

/// A socket of our own may end between the two lists: only what is still there after this is somebody else's.
const CERTAINTY: Duration = Duration::from_millis(50);

/// Whether there is a TCP socket of our UID that is not ours; an unreadable `/proc` shows none.
pub async fn is_there() -> bool {
    let suspects = strangers().unwrap_or_default();
    if suspects.is_empty() {
        return false;
    }
    tokio::time::sleep(CERTAINTY).await;
    strangers().unwrap_or_default().intersection(&suspects).next().is_some()
}

/// Inodes of sockets of our UID that we do not hold. The table is read first: what we open meanwhile is not in it.
fn strangers() -> io::Result<HashSet<u64>> {
    let uid = rustix::process::geteuid().as_raw();
    let mut found = HashSet::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        found.extend(sockets_of(&std::fs::read_to_string(table)?, uid));
    }
    if !found.is_empty() {
        for ours in our_sockets()? {
            found.remove(&ours);
        }
    }
    Ok(found)
}

fn our_sockets() -> io::Result<impl Iterator<Item = u64>> {
    let links = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Ok(links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()))
}

/// proc(5), `/proc/net/tcp`: the third column is the other side, the eighth the owner, the tenth the inode, 0 for what no
/// process holds any more. What stays on loopback, a probe of our own for instance, goes around nothing.
fn sockets_of(table: &str, uid: u32) -> impl Iterator<Item = u64> + use<'_> {
    table.lines().skip(1).filter_map(move |line| {
        let mut columns = line.split_ascii_whitespace();
        let remote = columns.nth(2)?;
        let owner: u32 = columns.nth(4)?.parse().ok()?;
        let inode: u64 = columns.nth(1)?.parse().ok()?;
        (owner == uid && inode != 0 && leaves(remote)?).then_some(inode)
    })
}

/// Whether an address as the table has it, four bytes at a time in the machine's order, is another host's.
fn leaves(remote: &str) -> Option<bool> {
    let (digits, _) = remote.split_once(':')?;
    let words = digits.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let address = match (<[u8; 4]>::try_from(bytes.as_slice()), <[u8; 16]>::try_from(bytes.as_slice())) {
        (Ok(v4), _) => IpAddr::from(v4),
        (_, Ok(v6)) => IpAddr::from(v6).to_canonical(),
        _ => return None,
    };
    Some(!address.is_loopback() && !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let line = |remote: &str, uid: u32, inode: u64| {
            format!(
                "   0: 0200000A:C350 {remote} 01 00000000:00000000 02:000003E8 00000000 {uid} 0 {inode} 2 00 20\n"
            )
        };
        let address = |bytes: &[u8]| {
            let words = bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
            words.map(|word| format!("{word:08X}")).collect::<String>() + ":01BB"
        };
        let v6 = |text: &str| address(&text.parse::<std::net::Ipv6Addr>().unwrap().octets());
        let table = [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n".to_owned(),
            line(&address(&[10, 0, 0, 1]), 1337, 1),
            line(&address(&[10, 0, 0, 1]), 1000, 2),
            line(&address(&[10, 0, 0, 1]), 1337, 0),
            line(&address(&[127, 0, 0, 1]), 1337, 3),
            line(&address(&[0, 0, 0, 0]), 1337, 4),
            line(&v6("2001:db8::1"), 1337, 5),
            line(&v6("::1"), 1337, 6),
            line(&v6("::ffff:127.0.0.1"), 1337, 7),
            line(&v6("::ffff:10.0.0.1"), 1337, 8),
        ];
        assert_eq!(sockets_of(&table.concat(), 1337).collect::<Vec<_>>(), [1, 5, 8]);
    }

    #[test]
    fn our_own_sockets_are_known() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_far, _) = listener.accept().unwrap();
        let ours: HashSet<u64> = our_sockets().unwrap().collect();
        assert!(ours.len() >= 3);
        assert!(strangers().unwrap().is_disjoint(&ours));
    }
}
