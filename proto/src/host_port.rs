//! Where a node listens, as `HOST:PORT`.

use std::fmt;
use std::net::SocketAddr;

/// The longest host: that of the domain name system.
const HOST_BYTES_MAX: usize = 253;

/// Whether a text is `HOST:PORT`, with an IPv6 host in brackets.
pub fn is_host_port(text: &str) -> bool {
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return socket.port() != 0;
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let begins = host.starts_with(|c: char| c.is_ascii_alphanumeric());
    let named = begins && host.len() <= HOST_BYTES_MAX && host.chars().all(allowed);
    named && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Checks that a text is `HOST:PORT`, as in `db-1:7401`.
pub fn check_host_port(text: &str) -> Result<(), NotHostPort> {
    match is_host_port(text) {
        true => Ok(()),
        false => Err(NotHostPort(text.to_owned())),
    }
}

/// A text that is not `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotHostPort(String);

impl fmt::Display for NotHostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.0;
        let inner = text.split_once("://").map_or(&**text, |(_, rest)| rest);
        let inner = inner.split('/').next().unwrap_or_default();
        match is_host_port(inner) {
            true => write!(
                f,
                "`{text}` is not HOST:PORT: nodes are reached without a scheme or path, at {inner}"
            ),
            false => write!(f, "`{text}` is not HOST:PORT, as in 127.0.0.1:7401"),
        }
    }
}

impl std::error::Error for NotHostPort {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_and_nothing_else() {
        for right in [
            "127.0.0.1:1",
            "[::1]:7400",
            "db-1.example:7400",
            "localhost:65535",
        ] {
            assert_eq!(check_host_port(right), Ok(()));
        }
        let said = |text: &str| check_host_port(text).expect_err("refused").to_string();
        for wrong in [
            "", "a", ":1", "a:0", "a:x", "::1:1", "http://", "a b:1", "-a:1", "a:65536",
        ] {
            assert!(said(wrong).contains("as in 127.0.0.1:7401"), "{wrong}");
        }
        for wrong in ["http://a:1", "https://a:1/", "a:1/path", "http://a:1/x/y"] {
            assert!(said(wrong).ends_with("at a:1"), "{}", said(wrong));
        }
    }
}
