//! What goes wrong, with Azure's own codes, messages and headers.

use serde_json::{Value, json};

use crate::http::{Content, Reply};

/// An error as Azure answers it, or as a failed operation carries it.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The status of the answer; a failed operation is still read with 200.
    pub status: u16,
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// What it is about.
    pub target: Option<Box<str>>,
    /// Further errors inside.
    pub details: Vec<Value>,
    /// Compute sometimes answers without the `error` around it.
    pub bare: bool,
    /// Headers that come with it.
    pub headers: Vec<(&'static str, String)>,
}

impl Problem {
    /// An error in Azure's usual envelope.
    #[must_use]
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Problem {
        Problem {
            status,
            code: code.to_owned(),
            message: message.into(),
            target: None,
            details: Vec::new(),
            bare: false,
            headers: Vec::new(),
        }
    }

    /// Names what it is about.
    #[must_use]
    pub fn about(mut self, target: impl Into<String>) -> Problem {
        self.target = Some(target.into().into_boxed_str());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Problem {
        self.headers.push((name, value.into()));
        self
    }

    /// Adds an error inside.
    #[must_use]
    pub fn because(mut self, detail: Value) -> Problem {
        self.details.push(detail);
        self
    }

    /// `{code, message, target?, details?}`.
    #[must_use]
    pub fn inner(&self) -> Value {
        let mut body = json!({"code": self.code, "message": self.message});
        if let Some(target) = &self.target {
            body["target"] = json!(target);
        }
        if !self.details.is_empty() {
            body["details"] = json!(self.details);
        }
        body
    }

    /// The whole answer.
    #[must_use]
    pub fn reply(&self) -> Reply {
        let body = if self.bare {
            self.inner()
        } else {
            json!({"error": self.inner()})
        };
        Reply {
            status: self.status,
            headers: self.headers.clone(),
            content: Content::Json(body),
        }
    }

    // What the Resource Manager itself answers.

    /// A resource that is not there.
    #[must_use]
    pub fn not_found(resource_type: &str, name: &str, group: &str) -> Problem {
        Problem::new(
            404,
            "ResourceNotFound",
            format!(
                "The Resource '{resource_type}/{name}' under resource group '{group}' was not found. \
                 For more details please go to https://aka.ms/ARMResourceNotFoundFix"
            ),
        )
        .with("x-ms-failure-cause", "gateway")
    }

    /// A resource group that is not there.
    #[must_use]
    pub fn no_group(group: &str) -> Problem {
        Problem::new(
            404,
            "ResourceGroupNotFound",
            format!("Resource group '{group}' could not be found."),
        )
        .with("x-ms-failure-cause", "gateway")
    }

    /// The parent of a nested resource is not there.
    #[must_use]
    pub fn no_parent(child: &str, parent: &str) -> Problem {
        Problem::new(
            404,
            "ParentResourceNotFound",
            format!(
                "Failed to perform 'write' on resource(s) of type '{child}', because the parent \
                 resource '{parent}' could not be found."
            ),
        )
        .with("x-ms-failure-cause", "gateway")
    }

    /// A type that the provider does not have.
    #[must_use]
    pub fn no_type(resource_type: &str, namespace: &str, version: &str) -> Problem {
        Problem::new(
            404,
            "InvalidResourceType",
            format!(
                "The resource type '{resource_type}' could not be found in the namespace \
                 '{namespace}' for api version '{version}'."
            ),
        )
        .with("x-ms-failure-cause", "gateway")
    }

    /// A provider that is not there.
    #[must_use]
    pub fn no_namespace(namespace: &str) -> Problem {
        Problem::new(
            404,
            "InvalidResourceNamespace",
            format!("The resource namespace '{namespace}' is invalid."),
        )
        .with("x-ms-failure-cause", "gateway")
    }

    /// A method that a resource type does not take.
    #[must_use]
    pub fn no_method(method: &str) -> Problem {
        Problem::new(
            405,
            "MethodNotAllowed",
            format!("The requested resource does not support http method '{method}'."),
        )
    }

    // What Compute answers.

    /// The provider's own word for something that is not there.
    #[must_use]
    pub fn no_entity() -> Problem {
        Problem::new(
            404,
            "NotFound",
            "The entity was not found in this Azure location.",
        )
    }

    /// Two requests at once.
    #[must_use]
    pub fn conflict() -> Problem {
        Problem::new(
            409,
            "Conflict",
            "The request failed due to conflict with a concurrent request. To resolve it, please \
             refer to https://aka.ms/activitylog to get more details on the conflicting requests.",
        )
    }

    /// Two requests at once, as the network says it.
    #[must_use]
    pub fn another_operation(resource: &str, operation: &str) -> Problem {
        let busy = format!(
            "Another operation on this or dependent resource is in progress. To retrieve status of \
             the operation use uri: operations/{operation}."
        );
        Problem::new(409, "AnotherOperationInProgress", busy).about(resource)
    }

    /// A reference to a resource that is not ready yet.
    #[must_use]
    pub fn not_provisioned(referenced: &str) -> Problem {
        Problem::new(
            429,
            "RetryableError",
            "A retryable error occurred.",
        )
        .because(serde_json::json!({
            "code": "ReferencedResourceNotProvisioned",
            "message": format!(
                "Cannot proceed with operation because resource {referenced} used by this resource is not in Succeeded state. Resource is in Updating state and the last operation that updated/is updating the resource is PutOperation."
            ),
        }))
    }

    /// A reference to a resource that is not there.
    #[must_use]
    pub fn bad_reference(referenced: &str) -> Problem {
        Problem::new(
            400,
            "InvalidResourceReference",
            format!(
                "Resource {referenced} referenced by this resource was not found. Please make sure \
                 that the referenced resource exists, and that both resources are in the same region."
            ),
        )
    }

    /// A property that is fixed when the resource is created.
    #[must_use]
    pub fn fixed(property: &str) -> Problem {
        Problem::new(
            409,
            "PropertyChangeNotAllowed",
            format!("Changing property '{property}' is not allowed."),
        )
        .about(property)
    }

    /// A parameter that is needed.
    #[must_use]
    pub fn required(path: &str) -> Problem {
        Problem::parameter(
            path,
            format!("Required parameter '{path}' is missing (null)."),
        )
    }

    /// A newer request took over; this is what the older one's operation ends with.
    #[must_use]
    pub fn preempted() -> Problem {
        Problem::new(
            409,
            "OperationPreempted",
            "Operation execution has been preempted by a more recent operation.",
        )
    }

    /// A rule about states.
    #[must_use]
    pub fn not_allowed(message: impl Into<String>) -> Problem {
        Problem::new(409, "OperationNotAllowed", message)
    }

    /// A parameter that makes no sense.
    #[must_use]
    pub fn parameter(target: &str, message: impl Into<String>) -> Problem {
        Problem::new(400, "InvalidParameter", message).about(target)
    }

    /// A body that is not what the type says.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Problem {
        Problem::new(400, "BadRequest", message)
    }

    /// An `If-Match` or `If-None-Match` that does not hold.
    #[must_use]
    pub fn precondition(header: &str) -> Problem {
        Problem::new(
            412,
            "PreconditionFailed",
            format!("The precondition specified in the {header} header was not met."),
        )
    }
}
