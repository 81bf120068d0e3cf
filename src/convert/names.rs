//! What methods and forms are called in reports.

use serde::Serializer;

use crate::adapter::Method;
use crate::peft::export::Form;

pub(super) fn method<S: Serializer>(method: &Method, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(method.name())
}

pub(super) fn form<S: Serializer>(form: &Form, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(form_name(*form))
}

pub(super) fn form_name(form: Form) -> &'static str {
    match form {
        Form::Faithful => "lora",
        Form::Portable => "lora-portable",
        Form::Vera => "vera",
    }
}
