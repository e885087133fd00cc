//! A group of three in one process: real stores, a network from a seed, a toy machine.

mod disk;
mod group;
mod network;
mod recovery;
mod snapshot;
mod toy;
