//! Transport security: the farm's own certificates, who is believed, and how they stay good.
//!
//! ```text
//! name         who a certificate speaks for     oast://FARM/member/NAME
//! authority    the root and members' issuers    found, delegate, issue
//! request      a key asks for a certificate     PKCS#10
//! pem          files of both                    one file holds key and chain
//! identity     the certificates of one process  read, used, read again
//! verify       who is believed                  chain, time, host (webpki), then farm and role
//! problem      why not                          one label for the counter, one sentence
//! accept, dial the two ends of a handshake
//! keep         renewed at two thirds, reloaded when files change
//! ```
//!
//! rustls with ring only. Inside the farm TLS 1.3; people's tools may come with 1.2. Private keys
//! are [`crate::secret::Secret`]s and leave this module in one way, the file of mode 0600.

mod accept;
mod authority;
mod certificate;
mod der;
mod dial;
mod files;
mod identity;
mod keep;
mod key;
mod name;
mod pem;
mod problem;
pub mod request;
#[cfg(test)]
mod tests;
mod verify;

pub use accept::{Accepted, Acceptor, Purpose};
pub use authority::{Authority, ISSUER_LIFE, IssueError, LEAF_LIFE, Order, ROOT_LIFE};
pub use certificate::{Certificate, PIN_PREFIX};
pub use der::Malformed;
pub use dial::{Connector, DialError, Dialer, Line, Refused, Tls, reason};
pub use files::{Files, Lives};
pub use identity::{
    CA_FILE, IDENTITY_FILE, ISSUER_FILE, Identity, IdentityError, Loaded, Options, PEOPLE_FILE,
};
pub use keep::{OwnIssuer, RenewError, Renewer, Signed, keep};
pub use key::{Key, KeyError, PublicKey};
pub use name::{BadName, Name, Role};
pub use pem::{Bundle, FileError, certificates, folder};
pub use problem::Problem;
