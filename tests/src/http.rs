//! Calls by curl, as an application makes them.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::sandbox::Inside;

/// Time for a call, unless it says otherwise.
const PATIENCE: Duration = Duration::from_secs(20);

/// One call by curl, to be sent.
#[derive(Debug)]
pub struct Call {
    command: Inside,
    url: String,
    patience: Duration,
}

impl Call {
    /// GET of this URL, by the curl that the command runs.
    #[must_use]
    pub fn new(command: Inside, url: &str) -> Self {
        Self { command: command.args(["-sS", "-i"]), url: url.to_owned(), patience: PATIENCE }
    }

    /// With another method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        self.args(["-X", method])
    }

    /// With a header field, `name: value`.
    #[must_use]
    pub fn header(self, field: &str) -> Self {
        self.args(["-H", field])
    }

    /// With a body.
    #[must_use]
    pub fn body(self, text: &str) -> Self {
        self.args(["--data-binary", text])
    }

    /// Over HTTP/1.1 only.
    #[must_use]
    pub fn http1(self) -> Self {
        self.args(["--http1.1"])
    }

    /// Over HTTP/2, if the other side offers it.
    #[must_use]
    pub fn http2(self) -> Self {
        self.args(["--http2"])
    }

    /// Over IPv4 only.
    #[must_use]
    pub fn v4(self) -> Self {
        self.args(["-4"])
    }

    /// Over IPv6 only.
    #[must_use]
    pub fn v6(self) -> Self {
        self.args(["-6"])
    }

    /// Gives up after this time, with what has come by then.
    #[must_use]
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// With more words for curl.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.command = self.command.args(args);
        self
    }

    /// Sends it and waits for the whole answer.
    ///
    /// # Errors
    /// If curl can't be run or does not end; a call that fails is an answer with status 0.
    pub fn send(self) -> anyhow::Result<Answer> {
        let seconds = self.patience.as_secs().to_string();
        let command = self.command.args(["--max-time", &seconds, &self.url]);
        let output = command.output(self.patience + Duration::from_secs(5))?;
        Ok(Answer::parse(output.exit, &output.stdout, output.stderr.trim()))
    }
}

/// What curl got.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// 0 if there was none.
    pub status: u16,
    /// Of HTTP/1.1's first line.
    pub reason: String,
    /// `HTTP/1.1` or `HTTP/2`.
    pub version: String,
    /// The header's fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// curl's exit code; 0 if it got an answer.
    pub exit: i32,
    /// What curl said.
    pub error: String,
}

impl Answer {
    fn parse(exit: i32, mut bytes: &[u8], error: &str) -> Self {
        let mut answer = Self { exit, error: error.to_owned(), ..Self::default() };
        // Interim answers (100, 103) come before the final one.
        while bytes.starts_with(b"HTTP/") {
            let Some(end) = find(bytes, b"\r\n\r\n") else { break };
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            bytes = &bytes[end + 4..];
            let mut lines = head.lines();
            let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
            answer.version = first.next().unwrap_or_default().to_owned();
            answer.status = first.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            answer.reason = first.next().unwrap_or_default().trim().to_owned();
            answer.headers = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            if answer.status >= 200 {
                break;
            }
        }
        answer.body = bytes.to_vec();
        answer
    }

    /// The value of a header field; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// Our code, if the answer is ours.
    #[must_use]
    pub fn code(&self) -> &str {
        self.header("countersign-code")
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {self:?}"))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// In a line, for people: the status, or why there is none.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.status == 0 { self.error.clone() } else { format!("{} {}", self.status, self.code()) }
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_answer_counts() {
        let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 Denied by policy CS5001\r\n\
            Countersign-Code: CS5001\r\n\r\n{\"a\":1}";
        let answer = Answer::parse(0, text, "");
        assert_eq!((answer.status, answer.reason.as_str()), (403, "Denied by policy CS5001"));
        assert_eq!(answer.code(), "CS5001");
        assert_eq!(answer.json().unwrap()["a"], 1);
    }

    #[test]
    fn no_answer_has_no_status() {
        let answer = Answer::parse(7, b"", "curl: (7) Failed to connect");
        assert_eq!((answer.status, answer.exit), (0, 7));
        assert_eq!(answer.shown(), "curl: (7) Failed to connect");
    }
}
