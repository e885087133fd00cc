//! Resource ids: which resource, which collection, which action a path means.

/// A path of the Resource Manager, taken apart. Names keep the caller's case; comparisons ignore it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Of the subscription.
    pub subscription: String,
    /// Absent when the path is about the whole subscription.
    pub group: Option<String>,
    /// For example `Microsoft.Compute`; absent for resource groups themselves.
    pub provider: Option<String>,
    /// For example `galleries`, `images`.
    pub types: Vec<String>,
    /// As many as types, or one fewer: then the last type is a collection or an action.
    pub names: Vec<String>,
}

impl Target {
    /// Takes `path` apart; `None` when it is not about a subscription.
    #[must_use]
    pub fn parse(path: &str) -> Option<Target> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let mut rest = parts.as_slice();
        let mut target = Target {
            subscription: named(&mut rest, "subscriptions")?.to_owned(),
            ..Target::default()
        };
        if let Some(group) = named(&mut rest, "resourceGroups") {
            target.group = Some(group.to_owned());
        }
        if let Some(provider) = named(&mut rest, "providers") {
            target.provider = Some(provider.to_owned());
        }
        for pair in rest.chunks(2) {
            target.types.push(pair[0].to_owned());
            target
                .names
                .extend(pair.get(1).map(|name| (*name).to_owned()));
        }
        Some(target)
    }

    /// The types in lower case with slashes: `galleries/images/versions`.
    #[must_use]
    pub fn route(&self) -> String {
        self.types.join("/").to_ascii_lowercase()
    }

    /// Whether it ends in a type: a collection, or an action on what is before.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.types.len() > self.names.len()
    }

    /// Without its last type: what an action is done to.
    #[must_use]
    pub fn parent(&self) -> Target {
        let mut parent = self.clone();
        if parent.is_open() {
            parent.types.pop();
        } else {
            parent.types.pop();
            parent.names.pop();
        }
        parent
    }

    /// The last name, or nothing.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.last().map_or("", String::as_str)
    }

    /// The group, or nothing.
    #[must_use]
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or_default()
    }

    /// The path again, as a caller wrote it.
    #[must_use]
    pub fn id(&self) -> String {
        let mut id = format!("/subscriptions/{}", self.subscription);
        if let Some(group) = &self.group {
            id.extend(["/resourceGroups/", group]);
        }
        if let Some(provider) = &self.provider {
            id.extend(["/providers/", provider]);
        }
        let mut names = self.names.iter();
        for kind in &self.types {
            id.extend(["/", kind]);
            if let Some(name) = names.next() {
                id.extend(["/", name]);
            }
        }
        id
    }
}

/// Takes `keyword/value` off the front.
fn named<'p>(rest: &mut &[&'p str], keyword: &str) -> Option<&'p str> {
    match rest {
        [first, value, tail @ ..] if first.eq_ignore_ascii_case(keyword) => {
            *rest = tail;
            Some(value)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_actions_and_nested_resources_are_told_apart() {
        let id = "/SUBSCRIPTIONS/s/resourcegroups/g/providers/microsoft.compute/VirtualMachineScaleSets/web/virtualmachines/3";
        let one = Target::parse(id).expect("it has a subscription");
        assert_eq!(one.route(), "virtualmachinescalesets/virtualmachines");
        assert_eq!((one.name(), one.is_open()), ("3", false));
        let view = Target::parse(&format!("{id}/instanceView")).expect("as before");
        assert!(view.is_open());
        assert_eq!(view.parent(), one);
        assert_eq!(one.parent().name(), "web");
        assert_eq!(Target::parse("/metadata/identity"), None);
        let group = Target::parse("/subscriptions/s/resourceGroups/g").expect("as before");
        assert_eq!((group.group(), group.types.len()), ("g", 0));
    }
}
