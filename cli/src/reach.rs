//! How a member's address is reached: in the clear on this machine, else under TLS.
//!
//! ```text
//! https://host:port   TLS, trusting the context's authority, else those that this machine knows
//! http://host:port    in the clear, loopback only: a token would travel with it
//! host:port           TLS when an authority is kept for the farm, else in the clear
//! ```

use std::net::IpAddr;
use std::time::Duration;

use oast_daemon::clock::SystemClock;
use oast_daemon::tls::{Bundle, Certificate, Dialer};
use tonic::transport::{Channel, Endpoint};

use crate::client::ClientError;

/// How long a member may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// How often a connection with open streams is checked, and how long it may take to answer: a
/// member that stands still must not hold a watch.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Whom to trust. Empty: what this machine trusts.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    authorities: Vec<Certificate>,
}

impl Reach {
    /// Trusts the authorities in this PEM text.
    pub fn trusting(pem: &str) -> Result<Reach, ClientError> {
        let bundle = Bundle::parse(pem.as_bytes()).map_err(ClientError::Authority)?;
        if bundle.chain.is_empty() {
            return Err(ClientError::Authority("holds no certificate"));
        }
        Ok(Reach {
            authorities: bundle.chain,
        })
    }

    /// A connection that is made when it is first used.
    pub fn channel(&self, address: &str) -> Result<Channel, ClientError> {
        let bad = || ClientError::Address(address.to_owned());
        let (secured, place) = match address.split_once("://") {
            Some(("https", place)) => (true, place),
            Some(("http", place)) => (false, place),
            Some(_) => return Err(bad()),
            None => (!self.authorities.is_empty(), address),
        };
        let place = place.trim_end_matches('/');
        let (host, port) = place.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        let endpoint = Endpoint::from_shared(format!("http://{place}")).map_err(|_| bad())?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_DEADLINE)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        if !secured {
            if !is_loopback(host) {
                return Err(ClientError::Clear(address.to_owned()));
            }
            return Ok(endpoint.connect_lazy());
        }
        let clock = SystemClock::shared();
        let dialer = if self.authorities.is_empty() {
            Dialer::system(clock)
        } else {
            Dialer::trusting(&self.authorities, clock)
        };
        let dialer = dialer.map_err(ClientError::Trust)?;
        Ok(endpoint.connect_with_connector_lazy(dialer.connector()))
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || bare
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tokens_travel_in_the_clear_on_this_machine_only() {
        let reach = Reach::default();
        for good in [
            "127.0.0.1:7443",
            "http://127.0.0.1:7443/",
            "[::1]:7443",
            "localhost:1",
        ] {
            assert!(reach.channel(good).is_ok(), "{good}");
        }
        for clear in [
            "10.0.0.1:7443",
            "http://farm.example:7443",
            "127.0.0.1.example:7443",
        ] {
            let error = reach.channel(clear).expect_err("in the clear");
            assert!(matches!(error, ClientError::Clear(_)), "{clear}: {error}");
        }
        for bad in ["farm", "ftp://x:1", "https://x", "https://:1", "x:99999"] {
            let error = reach.channel(bad).expect_err("no address");
            assert!(matches!(error, ClientError::Address(_)), "{bad}: {error}");
        }
        assert!(Reach::trusting("rubbish").is_err());
    }
}
