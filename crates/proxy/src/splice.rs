//! Carries a connection untouched: not a byte is changed; half-close is kept, and so is a reset.
//!
//! Small messages are copied through one buffer of the thread. What comes in bulk goes through a pipe with splice(2) and
//! never enters our memory, which halves its cost. A pipe is held only while there is something in it, so an idle
//! connection holds neither buffer nor pipe; where there is none to be had (`pipe-user-pages-soft`, open files) bulk is
//! copied too.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::BytesMut;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice as move_pages};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::socket::keep_alive;

/// Bytes that are copied at a time. 64 KiB took about half the CPU of tokio's default of 8 KiB.
const COPY: usize = 64 << 10;

/// What comes in pieces of this size or more is bulk.
const BULK: usize = 16 << 10;

/// Capacity of a pipe. A user may have 64 MiB in all unless told otherwise (pipe(7), `pipe-user-pages-soft`).
const PIPE: usize = 256 << 10;

/// Pipes that a worker keeps for the next who needs one.
const PIPES_KEPT: usize = 8;

/// Bytes that were carried so far; also when a connection is cut.
#[derive(Debug, Default)]
pub struct Carried {
    /// From the application.
    pub up: Cell<u64>,
    /// To the application.
    pub down: Cell<u64>,
    /// Of both, those that went through a pipe.
    pub spliced: Cell<u64>,
}

/// How one direction broke.
enum Broken {
    /// Nothing more comes: the sender has reset the connection.
    Read(io::Error),
    /// Nothing more can be sent; what the receiver said before may still have to be read.
    Write(io::Error),
}

/// Sends what was already read, then everything in both directions until both have ended. `watch` sees what the
/// application sends, which then does not go through pipes.
///
/// # Errors
/// If either connection breaks. What had been said before that was carried; the other side is to be [`reset`].
pub async fn splice(
    downstream: &TcpStream,
    upstream: &TcpStream,
    first_up: BytesMut,
    carried: &Carried,
    watch: Option<&dyn Fn(&[u8])>,
) -> io::Result<()> {
    for stream in [downstream, upstream] {
        keep_alive(stream);
    }
    let up = async {
        if let Some(watch) = watch {
            watch(&first_up);
        }
        send(upstream, &first_up).await.map_err(Broken::Write)?;
        add(&carried.up, first_up.len());
        drop(first_up);
        one_way(downstream, upstream, &carried.up, &carried.spliced, watch).await
    };
    let down = one_way(upstream, downstream, &carried.down, &carried.spliced, None);
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        ended = &mut up => after(ended, down).await,
        ended = &mut down => after(ended, up).await,
    }
}

/// One direction has ended: what becomes of the other.
async fn after(ended: Result<(), Broken>, other: impl Future<Output = Result<(), Broken>>) -> io::Result<()> {
    match ended {
        Ok(()) => other.await.map_err(Broken::into_inner),
        Err(Broken::Read(error)) => Err(error),
        Err(Broken::Write(error)) => other.await.map_err(Broken::into_inner).and(Err(error)),
    }
}

impl Broken {
    fn into_inner(self) -> io::Error {
        match self {
            Self::Read(error) | Self::Write(error) => error,
        }
    }
}

/// Ends a connection as broken: a regular end would say that all was said.
pub fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

async fn one_way(
    from: &TcpStream,
    to: &TcpStream,
    count: &Cell<u64>,
    spliced: &Cell<u64>,
    watch: Option<&dyn Fn(&[u8])>,
) -> Result<(), Broken> {
    let mut is_bulk = false;
    loop {
        // One connection that always has something must not keep the others waiting.
        tokio::task::coop::consume_budget().await;
        from.readable().await.map_err(Broken::Read)?;
        let pipe = if is_bulk { Pipe::take() } else { None };
        let moved = match pipe {
            Some(pipe) => through_pipe(from, to, pipe, spliced).await?,
            None => copied(from, to, watch).await?,
        };
        match moved {
            None => {}
            Some(0) => {
                // Whoever has gone already needs not be told.
                let _ = SockRef::from(to).shutdown(Shutdown::Write);
                return Ok(());
            }
            Some(moved) => {
                add(count, moved);
                is_bulk = moved >= BULK && watch.is_none();
            }
        }
    }
}

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; COPY].into_boxed_slice());
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// Copies once; `None` if there is nothing after all.
async fn copied(
    from: &TcpStream,
    to: &TcpStream,
    watch: Option<&dyn Fn(&[u8])>,
) -> Result<Option<usize>, Broken> {
    let (moved, rest) = {
        let moved = BUFFER.with_borrow_mut(|buffer| {
            let read = match from.try_read(buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(Broken::Read(error)),
            };
            if let Some(watch) = watch {
                watch(&buffer[..read]);
            }
            let sent = match to.try_write(&buffer[..read]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(Broken::Write(error)),
            };
            Ok(Some((read, buffer[sent..read].to_vec())))
        })?;
        match moved {
            None => return Ok(None),
            Some(moved) => moved,
        }
    };
    send(to, &rest).await.map_err(Broken::Write)?;
    Ok(Some(moved))
}

async fn send(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills the pipe once and empties it; `None` if there is nothing after all.
async fn through_pipe(
    from: &TcpStream,
    to: &TcpStream,
    pipe: Pipe,
    spliced: &Cell<u64>,
) -> Result<Option<usize>, Broken> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    // The pipe is empty, so "would block" speaks of the socket.
    let fill = || Ok(move_pages(from, None, &pipe.write, None, PIPE, flags)?);
    let moved = match from.try_io(Interest::READABLE, fill) {
        Ok(moved) => moved,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            pipe.give_back();
            return Ok(None);
        }
        Err(error) => return Err(Broken::Read(error)),
    };
    let mut left = moved;
    while left > 0 {
        to.writable().await.map_err(Broken::Write)?;
        let empty = || Ok(move_pages(&pipe.read, None, to, None, left, flags)?);
        match to.try_io(Interest::WRITABLE, empty) {
            Ok(sent) => left -= sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Broken::Write(error)),
        }
    }
    add(spliced, moved);
    pipe.give_back();
    Ok(Some(moved))
}

fn add(count: &Cell<u64>, bytes: usize) {
    count.set(count.get() + bytes as u64);
}

/// A pipe that is empty whenever nobody holds it: one with something in it is dropped with its connection.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// One that was kept, or a new one; `None` if none of the wanted size is to be had.
    fn take() -> Option<Self> {
        #[cfg(test)]
        if tests::NO_PIPES.get() {
            return None;
        }
        PIPES.with_borrow_mut(Vec::pop).or_else(|| Self::new().ok())
    }

    fn new() -> rustix::io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&write, PIPE)?;
        Ok(Self { read, write })
    }

    fn give_back(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < PIPES_KEPT {
                pipes.push(self);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    thread_local! {
        pub(super) static NO_PIPES: Cell<bool> = const { Cell::new(false) };
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// Application and server, with the proxy's two sockets between them.
    async fn between() -> (TcpStream, TcpStream, TcpStream, TcpStream) {
        let ((application, downstream), (upstream, server)) = tokio::join!(pair(), pair());
        (application, downstream, upstream, server)
    }

    fn noise(bytes: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(bytes).collect()
    }

    /// Carries this much each way, at the same time, and compares; returns how much went through pipes.
    async fn carry(bytes: usize) -> u64 {
        let (application, downstream, upstream, server) = between().await;
        let (up, down) = (noise(bytes, 1), noise(bytes, 2));
        let first = BytesMut::from(&up[..bytes.min(100)]);
        let rest = up[first.len()..].to_vec();
        let carried = Carried::default();
        let talk = |stream: TcpStream, says: Vec<u8>| async move {
            let (mut read, mut write) = stream.into_split();
            let (heard, ()) = tokio::join!(
                async {
                    let mut heard = Vec::new();
                    read.read_to_end(&mut heard).await.unwrap();
                    heard
                },
                async {
                    write.write_all(&says).await.unwrap();
                    write.shutdown().await.unwrap();
                }
            );
            heard
        };
        let (ended, at_application, at_server) = tokio::join!(
            splice(&downstream, &upstream, first, &carried, None),
            talk(application, rest),
            talk(server, down.clone())
        );
        ended.unwrap();
        assert!(at_application == down && at_server == up, "the bytes are the same");
        assert_eq!((carried.up.get(), carried.down.get()), (bytes as u64, bytes as u64));
        carried.spliced.get()
    }

    #[tokio::test]
    async fn bulk_goes_through_pipes_and_is_the_same() {
        let spliced = carry(24 << 20).await;
        assert!(spliced > 24 << 20, "of 48 MiB only {spliced} bytes were spliced");
        assert!(PIPES.with_borrow(Vec::len) <= PIPES_KEPT);
    }

    #[tokio::test]
    async fn without_a_pipe_bulk_is_copied() {
        NO_PIPES.set(true);
        let spliced = carry(8 << 20).await;
        NO_PIPES.set(false);
        assert_eq!(spliced, 0);
    }

    #[tokio::test]
    async fn small_messages_are_copied() {
        let (mut application, downstream, upstream, mut server) = between().await;
        let carried = Carried::default();
        let talk = async {
            let mut message = [0; 100];
            for turn in 0..200_u8 {
                application.write_all(&[turn; 100]).await.unwrap();
                server.read_exact(&mut message).await.unwrap();
                server.write_all(&message).await.unwrap();
                application.read_exact(&mut message).await.unwrap();
                assert_eq!(message, [turn; 100]);
            }
            drop((application, server));
        };
        let (ended, ()) = tokio::join!(splice(&downstream, &upstream, BytesMut::new(), &carried, None), talk);
        ended.unwrap();
        assert_eq!((carried.up.get(), carried.spliced.get()), (20_000, 0));
    }

    #[tokio::test]
    async fn half_close_is_kept_each_way() {
        let (mut application, downstream, upstream, mut server) = between().await;
        let carried = Carried::default();
        let talk = async {
            // The application has nothing more to say, and still hears all.
            application.write_all(b"question").await.unwrap();
            application.shutdown().await.unwrap();
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"question");
            server.write_all(b"a late answer").await.unwrap();
            drop(server);
            heard.clear();
            application.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"a late answer");
        };
        let (ended, ()) = tokio::join!(splice(&downstream, &upstream, BytesMut::new(), &carried, None), talk);
        ended.unwrap();
    }

    #[tokio::test]
    async fn a_reset_is_told_and_what_was_said_before_is_heard() {
        let (mut application, downstream, upstream, mut server) = between().await;
        let carried = Carried::default();
        let proxy = async move {
            let ended = splice(&downstream, &upstream, BytesMut::new(), &carried, None).await;
            assert!(ended.is_err());
            reset(&downstream);
            reset(&upstream);
        };
        let talk = async {
            server.write_all(b"the first half").await.unwrap();
            let mut heard = [0; 14];
            application.read_exact(&mut heard).await.unwrap();
            reset(&server);
            drop(server);
            let end = application.read(&mut heard).await;
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "it must not look whole");
        };
        tokio::join!(proxy, talk);
    }
}
