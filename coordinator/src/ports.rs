//! A member's two ports: one for people, one for the farm.
//!
//! ```text
//!            without [tls] (loopback only)   with [tls]
//! listen     everything                      people: API, pages, Git, webhooks; tokens over TLS
//! tls.listen -                               members and workers, who show certificates
//! ```

use std::io;

use axum::Router;
use oast_daemon::clock::SharedClock;
use oast_daemon::metrics::Metrics;
use oast_daemon::serve::{BindError, Port, Serving};
use oast_daemon::task::{TaskKind, Tasks};
use oast_daemon::tls::{self, Dialer, Identity, IdentityError, OwnIssuer, Purpose, Role};

use crate::config::{CoordinatorConfig, People};
use crate::gate;

/// The ports cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The certificates.
    #[error("use the member's certificates")]
    Identity(#[from] IdentityError),
}

/// The ports of one member, taken and not yet answered.
#[derive(Debug)]
pub struct Ports {
    people: Port,
    secured: bool,
    farm: Option<(Port, Identity)>,
}

impl Ports {
    /// Takes both ports and reads the certificates.
    ///
    /// # Errors
    /// [`PortsError`].
    pub fn take(
        config: &CoordinatorConfig,
        clock: &SharedClock,
        metrics: &Metrics,
    ) -> Result<Ports, PortsError> {
        let Some(own) = &config.tls else {
            return Ok(Ports {
                people: Port::bind(config.listen)?,
                secured: false,
                farm: None,
            });
        };
        let identity = Identity::open(tls::Options {
            folder: own.dir.clone(),
            farm: Some(config.farm.clone()),
            role: Role::Member,
            name: None,
            clock: clock.clone(),
            metrics: metrics.clone(),
        })?;
        let secured = own.people == People::Tls;
        let people = if secured {
            Port::bind_tls(config.listen, identity.clone(), Purpose::People)?
        } else {
            Port::bind(config.listen)?
        };
        let farm = Port::bind_tls(own.listen, identity.clone(), Purpose::Farm)?;
        Ok(Ports {
            people,
            secured,
            farm: Some((farm, identity)),
        })
    }

    /// Where people reach this member, such as `https://127.0.0.1:7443`.
    #[must_use]
    pub fn address(&self) -> String {
        let scheme = if self.secured { "https" } else { "http" };
        format!("{scheme}://{}", self.people.address())
    }

    /// The certificates, if there are any.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.farm.as_ref().map(|(_, identity)| identity)
    }

    /// How other members are called.
    #[must_use]
    pub fn dialer(&self) -> Dialer {
        match self.identity() {
            Some(identity) => Dialer::farm(identity.clone()),
            None => Dialer::plain(),
        }
    }

    /// Answers people with `people` and the farm with `farm`; without TLS everybody with both.
    ///
    /// `farm` may repeat routes of `people`: members pass calls on to the leader there.
    ///
    /// # Errors
    /// The runtime cannot take over a socket.
    pub fn serve(self, people: Router, farm: Farm, with: &Serving) -> io::Result<()> {
        let Some((port, _)) = self.farm else {
            self.people.serve(people.merge(farm.own), with)?;
            return Ok(());
        };
        let own = farm.own.merge(farm.passed_on);
        let own = own.layer(axum::middleware::from_fn(gate::check));
        port.serve(own, with)?;
        self.people.serve(people, with)?;
        Ok(())
    }

    /// Keeps the certificates good until shutdown.
    pub fn keep(&self, config: &CoordinatorConfig, tasks: &Tasks) {
        let (Some(identity), Some(own)) = (self.identity().cloned(), &config.tls) else {
            return;
        };
        let renewer = OwnIssuer {
            identity: identity.clone(),
            life: own.life.duration(),
        };
        let keeper = tls::keep(identity, renewer, tasks.cancelled());
        // Without it certificates would end one day; it has no error that would end it.
        tasks.spawn("certificates", TaskKind::SERVICE, keeper);
    }
}

/// What the farm's own port answers.
#[derive(Debug)]
pub struct Farm {
    /// Workers' and members' protocols.
    pub own: Router,
    /// What a member that does not lead passes on to the one that does.
    pub passed_on: Router,
}
