//! The base system of an image.

pub mod apt_conf;
pub mod deb;
pub mod distribution;
pub mod fetch;
pub mod index;
pub mod release;
pub mod signature;
pub mod solve;
pub mod source;
pub mod version;
