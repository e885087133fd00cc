//! Which types there are, and what is fixed about each.

use crate::http::Target;
use crate::operations::Family;
use crate::problem::Problem;
use crate::store::key;
use crate::world::{Call, World};

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Whatever a group has: the elements of its list of resources.
    Any,
    /// A resource group.
    Group,
    /// A managed disk.
    Disk,
    /// A snapshot of a disk.
    Snapshot,
    /// A managed image.
    Image,
    /// A gallery.
    Gallery,
    /// An image definition in a gallery.
    Definition,
    /// A version of a definition.
    Version,
    /// A virtual machine.
    Machine,
    /// A scale set.
    Set,
    /// An instance of a scale set.
    Instance,
    /// A managed Run Command of a machine.
    Command,
    /// An extension of a machine.
    Extension,
    /// A virtual network.
    Network,
    /// A part of a virtual network.
    Subnet,
    /// A network interface.
    Interface,
    /// A public address.
    Address,
    /// A network security group.
    Firewall,
}

/// Normalises a region's name: `West Europe` is `westeurope`.
#[must_use]
pub fn region(name: &str) -> String {
    let kept = name.chars().filter(|c| !c.is_whitespace());
    kept.collect::<String>().to_ascii_lowercase()
}

impl Kind {
    /// Of a route in lower case.
    #[must_use]
    pub fn of(provider: &str, route: &str) -> Option<Kind> {
        Some(match (provider, route) {
            ("microsoft.compute", "disks") => Kind::Disk,
            ("microsoft.compute", "snapshots") => Kind::Snapshot,
            ("microsoft.compute", "images") => Kind::Image,
            ("microsoft.compute", "galleries") => Kind::Gallery,
            ("microsoft.compute", "galleries/images") => Kind::Definition,
            ("microsoft.compute", "galleries/images/versions") => Kind::Version,
            ("microsoft.compute", "virtualmachines") => Kind::Machine,
            ("microsoft.compute", "virtualmachinescalesets") => Kind::Set,
            ("microsoft.compute", "virtualmachinescalesets/virtualmachines") => Kind::Instance,
            ("microsoft.compute", "virtualmachines/runcommands") => Kind::Command,
            ("microsoft.compute", "virtualmachines/extensions") => Kind::Extension,
            ("microsoft.network", "virtualnetworks") => Kind::Network,
            ("microsoft.network", "virtualnetworks/subnets") => Kind::Subnet,
            ("microsoft.network", "networkinterfaces") => Kind::Interface,
            ("microsoft.network", "publicipaddresses") => Kind::Address,
            ("microsoft.network", "networksecuritygroups") => Kind::Firewall,
            _ => return None,
        })
    }

    /// As the `type` of a body.
    #[must_use]
    pub fn type_name(self) -> &'static str {
        match self {
            Kind::Any => "",
            Kind::Group => "Microsoft.Resources/resourceGroups",
            Kind::Disk => "Microsoft.Compute/disks",
            Kind::Snapshot => "Microsoft.Compute/snapshots",
            Kind::Image => "Microsoft.Compute/images",
            Kind::Gallery => "Microsoft.Compute/galleries",
            Kind::Definition => "Microsoft.Compute/galleries/images",
            Kind::Version => "Microsoft.Compute/galleries/images/versions",
            Kind::Machine => "Microsoft.Compute/virtualMachines",
            Kind::Set => "Microsoft.Compute/virtualMachineScaleSets",
            Kind::Instance => "Microsoft.Compute/virtualMachineScaleSets/virtualMachines",
            Kind::Command => "Microsoft.Compute/virtualMachines/runCommands",
            Kind::Extension => "Microsoft.Compute/virtualMachines/extensions",
            Kind::Network => "Microsoft.Network/virtualNetworks",
            Kind::Subnet => "Microsoft.Network/virtualNetworks/subnets",
            Kind::Interface => "Microsoft.Network/networkInterfaces",
            Kind::Address => "Microsoft.Network/publicIPAddresses",
            Kind::Firewall => "Microsoft.Network/networkSecurityGroups",
        }
    }

    /// The name of the body's type in `contract/schema.json`.
    #[must_use]
    pub fn schema(self) -> &'static str {
        match self {
            Kind::Disk => "disks",
            Kind::Snapshot => "snapshots",
            Kind::Image => "images",
            Kind::Gallery => "galleries",
            Kind::Definition => "galleries/images",
            Kind::Version => "galleries/images/versions",
            Kind::Machine => "virtualmachines",
            Kind::Set => "virtualmachinescalesets",
            Kind::Instance => "virtualmachinescalesets/virtualmachines",
            Kind::Command => "virtualmachines/runcommands",
            Kind::Extension => "virtualmachines/extensions",
            // What is no part of Compute is taken as it comes.
            Kind::Any
            | Kind::Group
            | Kind::Network
            | Kind::Subnet
            | Kind::Interface
            | Kind::Address
            | Kind::Firewall => "",
        }
    }

    /// Where its operations are read.
    #[must_use]
    pub fn family(self) -> Family {
        match self {
            Kind::Disk | Kind::Snapshot => Family::Disk,
            Kind::Gallery | Kind::Definition | Kind::Version => Family::Gallery,
            kind if kind.is_network() => Family::Network,
            _ => Family::Compute,
        }
    }

    /// Whether a newer write takes over from an older operation.
    #[must_use]
    pub fn preempts(self) -> bool {
        matches!(self, Kind::Machine | Kind::Set)
    }

    /// Whether it is one of the network's stubs.
    #[must_use]
    pub fn is_network(self) -> bool {
        self.type_name().starts_with("Microsoft.Network/")
    }

    /// Whether bodies carry an ETag.
    #[must_use]
    pub fn has_etag(self) -> bool {
        matches!(self, Kind::Machine | Kind::Set | Kind::Instance)
    }

    /// The id of a new resource: the types as Azure writes them, the names as the caller did.
    #[must_use]
    pub fn id(self, target: &Target) -> String {
        let mut canonical = target.clone();
        if let Some((provider, types)) = self.type_name().split_once('/')
            && target.provider.is_some()
        {
            canonical.provider = Some(provider.to_owned());
            canonical.types = types.split('/').map(str::to_owned).collect();
        }
        canonical.id()
    }

    /// Whether a nested resource has something to be nested in.
    ///
    /// # Errors
    /// It has not.
    pub fn parent_must_exist(self, world: &World, call: &Call<'_>) -> Result<(), Problem> {
        let parent = call.target.parent();
        if parent.types.is_empty() || world.store.get(&key(&parent.id())).is_some() {
            return Ok(());
        }
        let of = parent.types.last().cloned().unwrap_or_default();
        let short = format!("{of}/{}", parent.name());
        Err(Problem::no_parent(self.type_name(), &short))
    }
}
