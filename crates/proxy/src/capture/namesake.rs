//! Notices that somebody else runs with the proxy's UID: to the kernel it is the proxy, so its calls go around it.
//!
//! `/proc/net/tcp` lists the sockets of the network namespace with their owner, and needs no capability to be read. A
//! socket of our UID that is none of ours is another process's. Connections that come and go between two looks are not
//! seen.

use std::collections::HashSet;
use std::io;
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

/// proc(5), `/proc/net/tcp`: the eighth column is the owner, the tenth the inode, 0 for what no process holds any more.
fn sockets_of(table: &str, uid: u32) -> impl Iterator<Item = u64> + use<'_> {
    table.lines().skip(1).filter_map(move |line| {
        let mut columns = line.split_ascii_whitespace().skip(7);
        let owner: u32 = columns.next()?.parse().ok()?;
        let inode: u64 = columns.nth(1)?.parse().ok()?;
        (owner == uid && inode != 0).then_some(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 4711 1 00 100\n   \
            1: 0100007F:3A99 0100007F:C350 01 00000000:00000000 02:000003E8 00000000     0        0 4712 2 00 20\n   \
            2: 0100007F:3A99 0100007F:C351 06 00000000:00000000 03:000003E8 00000000  1337        0 0 3 00\n";
        assert_eq!(sockets_of(table, 1337).collect::<Vec<_>>(), [4711]);
        assert_eq!(sockets_of(table, 0).collect::<Vec<_>>(), [4712]);
    }

    #[tokio::test]
    async fn our_own_sockets_are_no_strangers() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_far, _) = listener.accept().unwrap();
        let ours: HashSet<u64> = our_sockets().unwrap().collect();
        assert!(ours.len() >= 3);
        assert!(strangers().unwrap().is_disjoint(&ours));
    }
}
