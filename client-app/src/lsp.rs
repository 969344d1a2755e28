//! How an LSP is named: `NODE_ID@HOST:PORT`.

use std::fmt;
use std::str::FromStr;

use bitcoin::secp256k1::PublicKey;

use crate::Error;

/// Node id and address of an LSP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LspAddress {
    /// Node id.
    pub node_id: PublicKey,
    /// `host:port`.
    pub address: String,
}

impl FromStr for LspAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::LspAddress { value: text.to_owned(), reason: reason.to_owned() };
        let (node_id, address) = text.split_once('@').ok_or_else(|| wrong("must be NODE_ID@HOST:PORT"))?;
        let node_id = node_id
            .parse()
            .map_err(|_| wrong("the node id must be a compressed public key, 66 hexadecimal digits"))?;
        let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
        if host.is_empty() {
            return Err(wrong("the host is missing"));
        }
        if !port.parse::<u16>().is_ok_and(|port| port != 0) {
            return Err(wrong("the port must be a number from 1 to 65535"));
        }
        Ok(Self { node_id, address: address.to_owned() })
    }
}

impl fmt::Display for LspAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node_id, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    #[test]
    fn an_address_survives_printing() {
        for host in ["127.0.0.1:9735", "lsp.example.com:1", "[::1]:9735"] {
            let text = format!("{ID}@{host}");
            assert_eq!(text.parse::<LspAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            (ID.to_owned(), "NODE_ID@"),
            (format!("02@{}", "h:1"), "66 hexadecimal"),
            (format!("{ID}@host"), "port is missing"),
            (format!("{ID}@:9735"), "host is missing"),
            (format!("{ID}@host:0"), "65535"),
            (format!("{ID}@host:70000"), "65535"),
        ];
        for (text, want) in cases {
            let e = text.parse::<LspAddress>().unwrap_err().to_string();
            assert!(e.contains(want) && e.contains(&text), "{e}");
        }
    }
}
