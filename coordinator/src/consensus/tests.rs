//! Groups in one process: real stores, networks from a seed or on loopback.

mod group;
mod kill;
mod membership;
mod network;
mod recovery;
mod snapshot;
mod states;
mod toy;
