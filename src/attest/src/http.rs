//! HTTP/1.1 (RFC 9112) as two programs need it that ask each other for small documents: strict, and limited in every direction.
//!
//! ```text
//!   start line CRLF                 ┐
//!   name ":" value CRLF …           │ at most MAX_HEAD bytes and MAX_FIELDS fields
//!   CRLF                            ┘
//!   content-length bytes, or        ┐ at most what the caller says
//!   chunks: size CRLF bytes CRLF …  ┘
//! ```
//!
//! SECURITY: what senders may write in two ways is taken in one (no bare line feeds, folded fields, chunk extensions or trailers, no
//! length given twice or in two forms), so that nobody on the way reads another message than this.

use std::io::{self, Read, Write};

/// Longest head of a message, in bytes.
pub const MAX_HEAD: usize = 16 << 10;
/// Most fields of a head.
pub const MAX_FIELDS: usize = 64;

/// Bytes that are read at once.
const PIECE: usize = 8 << 10;
/// Longest line that says a chunk's size, in bytes.
const MAX_SIZE_LINE: usize = 8;

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The stream failed.
    #[error(transparent)]
    Stream(#[from] io::Error),
    /// The stream ended before the first byte.
    #[error("the connection was closed")]
    Closed,
    /// The stream ended in the middle.
    #[error("the connection was closed in the middle of a message")]
    Cut,
    /// Not HTTP/1.1, or not in the one form that is taken.
    #[error("it is not a message of HTTP/1.1: {0}")]
    Malformed(&'static str),
    /// Larger than it may be.
    #[error("its {what} is longer than {limit} bytes")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
}

impl Error {
    /// Whether the connection broke, rather than carried something wrong.
    pub fn is_broken_connection(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::Closed | Self::Cut)
    }
}

/// Start line and fields of a message.
#[derive(Debug, Default)]
pub struct Head {
    start: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// A field that may come once at most.
    pub fn field<'a>(&'a self, name: &'a str) -> Result<Option<&'a str>, Error> {
        let mut values = self.fields(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(Error::Malformed("a field comes twice")),
        }
    }

    /// All values of a field.
    pub fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of_name = move |(field, _): &&(String, String)| field.eq_ignore_ascii_case(name);
        self.fields
            .iter()
            .filter(of_name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether the connection ends with this message.
    fn closes(&self) -> bool {
        self.fields("connection").any(|value| {
            value
                .split(',')
                .any(|word| word.trim().eq_ignore_ascii_case("close"))
        })
    }

    /// How the body's length is given. `None` if it is not.
    fn length(&self, limit: usize) -> Result<Option<Length>, Error> {
        match (self.field("content-length")?, self.field("transfer-encoding")?) {
            (None, None) => Ok(None),
            (Some(length), None) => decimal(length, limit).map(|length| Some(Length::Known(length))),
            (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Ok(Some(Length::Chunked)),
            (None, Some(_)) => Err(Error::Malformed("a transfer coding besides chunked")),
            (Some(_), Some(_)) => Err(Error::Malformed("its length is given in two ways")),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Length {
    Known(usize),
    Chunked,
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// "GET", "POST", ….
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The rest of the head.
    pub head: Head,
    /// The body.
    pub body: Vec<u8>,
    /// Whether nothing more will come on this connection.
    pub last: bool,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// The rest of the head.
    pub head: Head,
    /// The body.
    pub body: Vec<u8>,
    /// Whether nothing more will come on this connection.
    pub last: bool,
}

/// A stream, with what has been read of it and not been understood.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Connection<S> {
    /// Over a stream on which nothing has been said.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// The stream.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Whether there are bytes that have been read already.
    pub fn has_more(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Sends a message. `start` and `fields` are the caller's own words, without line breaks.
    pub fn send(&mut self, start: &str, fields: &[(&str, &str)], body: &[u8]) -> Result<(), Error> {
        let mut message = format!("{start}\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in fields {
            message += &format!("{name}: {value}\r\n");
        }
        message += "\r\n";
        let mut bytes = message.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes)?;
        self.stream.flush()?;
        Ok(())
    }

    /// Reads a request whose body has at most `limit` bytes.
    pub fn receive_request(&mut self, limit: usize) -> Result<Request, Error> {
        let head = self.head()?;
        let mut words = head.start.splitn(3, ' ');
        let (Some(method), Some(target), Some("HTTP/1.1")) = (words.next(), words.next(), words.next())
        else {
            return Err(Error::Malformed("its first line is not a request's"));
        };
        if !is_token(method) || !target.starts_with('/') {
            return Err(Error::Malformed("its first line is not a request's"));
        }
        let (method, target) = (method.to_owned(), target.to_owned());
        let body = match head.length(limit)? {
            None => Vec::new(),
            Some(length) => self.body(length, limit)?,
        };
        Ok(Request {
            method,
            target,
            last: head.closes(),
            head,
            body,
        })
    }

    /// Reads an answer whose body has at most `limit` bytes.
    pub fn receive_response(&mut self, limit: usize) -> Result<Response, Error> {
        let head = self.head()?;
        let rest = head
            .start
            .strip_prefix("HTTP/1.1 ")
            .ok_or(Error::Malformed("its first line is not an answer's"))?;
        let (status, _) = rest.split_once(' ').unwrap_or((rest, ""));
        let status = decimal(status, 599)?;
        let status = u16::try_from(status).unwrap_or(0);
        // Nobody asked for interim answers.
        if status < 200 || rest.len() < 3 {
            return Err(Error::Malformed("its status is not one"));
        }
        let body = match (status, head.length(limit)?) {
            (204 | 304, _) => Vec::new(),
            (_, Some(length)) => self.body(length, limit)?,
            (_, None) => return Err(Error::Malformed("it does not say how long it is")),
        };
        Ok(Response {
            status,
            last: head.closes(),
            head,
            body,
        })
    }

    fn head(&mut self) -> Result<Head, Error> {
        let mut left = MAX_HEAD;
        let limit = || Error::TooLong {
            what: "head",
            limit: MAX_HEAD,
        };
        let start = self.line(&mut left, true, limit)?;
        let mut head = Head {
            start,
            fields: Vec::new(),
        };
        loop {
            let line = self.line(&mut left, false, limit)?;
            if line.is_empty() {
                return Ok(head);
            }
            if head.fields.len() == MAX_FIELDS {
                return Err(Error::Malformed("it has more than 64 fields"));
            }
            let (name, value) = line
                .split_once(':')
                .filter(|(name, _)| is_token(name))
                .ok_or(Error::Malformed("a field has no name"))?;
            let value = value.trim_matches([' ', '\t']);
            head.fields.push((name.to_owned(), value.to_owned()));
        }
    }

    /// A line without its end. `left`: how many bytes it may have, which it uses up.
    fn line(&mut self, left: &mut usize, first: bool, too_long: impl Fn() -> Error) -> Result<String, Error> {
        let mut searched = 0;
        let end = loop {
            let found = self.buffer.get(searched..).unwrap_or_default();
            if let Some(at) = found.iter().position(|byte| *byte == b'\n') {
                break searched + at;
            }
            searched = self.buffer.len();
            if searched > *left {
                return Err(too_long());
            }
            let empty = first && self.buffer.is_empty();
            self.fill().map_err(|error| match error {
                Error::Cut if empty => Error::Closed,
                error => error,
            })?;
        };
        *left = left.checked_sub(end + 1).ok_or_else(too_long)?;
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        let text = line
            .strip_suffix(b"\r\n")
            .ok_or(Error::Malformed("a line does not end as lines do"))?;
        let printable = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
        match std::str::from_utf8(text) {
            Ok(text) if text.as_bytes().iter().all(printable) => Ok(text.to_owned()),
            _ => Err(Error::Malformed("its head is not text")),
        }
    }

    fn body(&mut self, length: Length, limit: usize) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        match length {
            Length::Known(length) => self.take(length, &mut body)?,
            Length::Chunked => loop {
                let size = self.chunk_size()?;
                if size > limit - body.len() {
                    return Err(Error::TooLong { what: "body", limit });
                }
                self.take(size, &mut body)?;
                let mut left = 2;
                let end = self.line(&mut left, false, || Error::Malformed("a chunk does not end"))?;
                if !end.is_empty() {
                    return Err(Error::Malformed("a chunk does not end"));
                }
                if size == 0 {
                    break;
                }
            },
        }
        Ok(body)
    }

    fn chunk_size(&mut self) -> Result<usize, Error> {
        let wrong = || Error::Malformed("a chunk's size is not one");
        let mut left = MAX_SIZE_LINE + 2;
        let line = self.line(&mut left, false, wrong)?;
        if line.is_empty() || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        usize::from_str_radix(&line, 16).map_err(|_| wrong())
    }

    /// Moves so many bytes of the stream into `body`, which grows only as they arrive.
    fn take(&mut self, length: usize, body: &mut Vec<u8>) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill()?;
            }
            let count = left.min(self.buffer.len());
            body.extend(self.buffer.drain(..count));
            left -= count;
        }
        Ok(())
    }

    /// Reads what there is, at least one byte.
    fn fill(&mut self) -> Result<(), Error> {
        let mut piece = [0; PIECE];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Error::Cut),
                Ok(count) => {
                    self.buffer
                        .extend_from_slice(piece.get(..count).unwrap_or_default());
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A number of decimal digits alone, at most `limit`.
fn decimal(text: &str, limit: usize) -> Result<usize, Error> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::Malformed("a number is not one"));
    }
    match text.parse() {
        Ok(number) if number <= limit => Ok(number),
        _ => Err(Error::TooLong { what: "body", limit }),
    }
}

/// A name of RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(letter)
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
