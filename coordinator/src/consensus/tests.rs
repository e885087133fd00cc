//! Groups of three in one process: real stores, networks from a seed or on loopback.

mod group;
mod kill;
mod network;
mod recovery;
mod snapshot;
mod toy;
