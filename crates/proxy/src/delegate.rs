//! For wrappers of a connection that change only what is read of it.

/// Writes to a wrapper go to its `inner` as they are.
macro_rules! delegate_writes {
    ($wrapper:ident) => {
        impl<T: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for $wrapper<T> {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.inner).poll_write(cx, buf)
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.inner).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.inner).poll_shutdown(cx)
            }

            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match $crate::delegate::only_piece(bufs) {
                    Some(piece) => std::pin::Pin::new(&mut self.inner).poll_write(cx, piece),
                    None => std::pin::Pin::new(&mut self.inner).poll_write_vectored(cx, bufs),
                }
            }

            fn is_write_vectored(&self) -> bool {
                self.inner.is_write_vectored()
            }
        }
    };
}

pub(crate) use delegate_writes;

/// What there is to write if it is in one piece, as a record of TLS mostly is: send(2) costs the kernel less than writev(2).
pub(crate) fn only_piece<'a>(bufs: &'a [std::io::IoSlice<'_>]) -> Option<&'a [u8]> {
    match bufs {
        [piece] => Some(piece),
        _ => None,
    }
}
