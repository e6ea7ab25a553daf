//! The Python of `docs/merchant.md` names what the contract has: each file, service, method, message, field and enum in it
//! is looked up in the descriptors that the daemon serves for reflection.
//!
//! It is read, not run: this follows what is assigned, passed and iterated over, as far as that page needs it. Of what it
//! cannot follow, no attribute may be called like a field of the contract: there, an annotation is missing.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use millrace_rpc::v1::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type as Kind};
use prost_types::{DescriptorProto, FileDescriptorSet};

/// What a value in Python is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Type {
    /// What `protoc` makes of a file: messages and enums, or stubs.
    Module {
        file: String,
        has_stubs: bool,
    },
    /// A message, by its name in the contract.
    Message(String),
    /// The same as something to call, which makes one.
    Class(String),
    Enum(String),
    StubClass(String),
    Stub(String),
    /// A call's name, and what it answers.
    Call {
        answers: String,
        is_stream: bool,
    },
    Stream(String),
    /// Not the contract's: a number, a string, Python's own.
    Plain,
    /// It was not followed.
    Unknown,
}

/// The contract.
struct Contract(FileDescriptorSet);

impl Contract {
    fn file(&self, name: &str) -> &prost_types::FileDescriptorProto {
        let path = format!("millrace/v1/{name}.proto");
        self.0.file.iter().find(|file| file.name() == path).unwrap_or_else(|| panic!("there is no {path}"))
    }

    fn message(&self, name: &str) -> &DescriptorProto {
        let mut all = self.0.file.iter().flat_map(|file| &file.message_type);
        all.find(|message| message.name() == name).unwrap_or_else(|| panic!("there is no message {name}"))
    }

    /// A name of a module.
    fn of_module(&self, file: &str, has_stubs: bool, name: &str) -> Type {
        let file = self.file(file);
        if has_stubs {
            let service = name.strip_suffix("Stub").unwrap_or_else(|| panic!("{name} is no stub"));
            assert!(file.service.iter().any(|it| it.name() == service), "{} has no service {service}", file.name());
            return Type::StubClass(service.to_owned());
        }
        if file.enum_type.iter().any(|it| it.name() == name) {
            return Type::Enum(name.to_owned());
        }
        assert!(file.message_type.iter().any(|it| it.name() == name), "{} has no {name}", file.name());
        Type::Class(name.to_owned())
    }

    fn call(&self, service: &str, name: &str) -> Type {
        let mut services = self.0.file.iter().flat_map(|file| &file.service);
        let service = services.find(|it| it.name() == service).expect("it was looked up");
        let method = service.method.iter().find(|method| method.name() == name);
        let method = method.unwrap_or_else(|| panic!("{} has no method {name}", service.name()));
        Type::Call { answers: last(method.output_type()), is_stream: method.server_streaming() }
    }

    fn field(&self, message: &str, name: &str) -> Type {
        let fields = &self.message(message).field;
        let field = fields.iter().find(|field| field.name() == name);
        let field = field.unwrap_or_else(|| panic!("{message} has no field {name}"));
        let is_one_message = field.label() != Label::Repeated && field.r#type() == Kind::Message;
        if is_one_message { Type::Message(last(field.type_name())) } else { Type::Plain }
    }

    /// The names of all fields.
    fn fields(&self) -> BTreeSet<&str> {
        let messages = self.0.file.iter().flat_map(|file| &file.message_type);
        messages.flat_map(|message| &message.field).map(|field| field.name()).collect()
    }
}

fn last(path: &str) -> String {
    path.rsplit('.').next().unwrap().to_owned()
}

/// What every message has in Python, of what the page uses.
const OF_EVERY_MESSAGE: [&str; 2] = ["HasField", "Unpack"];

/// The words of Python that stand before a value and are none.
const KEYWORDS: [&str; 21] = [
    "import", "from", "as", "return", "if", "elif", "else", "while", "in", "not", "and", "or", "with", "try", "except",
    "raise", "lambda", "True", "False", "None", "for",
];

/// Words, strings (with a quote before them) and signs; `\n` ends a line.
fn tokens(python: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = python;
    while let Some(first) = rest.chars().next() {
        let len = if let Some(long) = rest.strip_prefix("\"\"\"") {
            long.find("\"\"\"").unwrap() + 6
        } else if first == '"' {
            rest[1..].find('"').unwrap() + 2
        } else if first == '#' {
            rest.find('\n').unwrap()
        } else if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let token = &rest[..len];
        if !(token.starts_with('#') || token == " ") {
            tokens.push(token.trim_end_matches('"').to_owned());
        }
        rest = &rest[len..];
    }
    tokens
}

/// Reads the page's Python, and looks everything up.
struct Reader<'a> {
    contract: &'a Contract,
    fields: BTreeSet<&'a str>,
    tokens: Vec<String>,
    modules: BTreeMap<String, Type>,
    /// Of the present function.
    names: BTreeMap<String, Type>,
    /// What was found, as `Message.field`, `Service.Method` and so on.
    found: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn new(contract: &'a Contract, python: &str) -> Self {
        let (modules, names, found) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { contract, fields: contract.fields(), tokens: tokens(python), modules, names, found }
    }

    fn token(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", String::as_str)
    }

    fn is_name(&self, at: usize) -> bool {
        self.token(at).starts_with(|c: char| c.is_alphabetic() || c == '_') && !KEYWORDS.contains(&self.token(at))
    }

    fn read(&mut self) {
        let mut at = 0;
        while at < self.tokens.len() {
            at = self.step(at);
        }
    }

    fn step(&mut self, at: usize) -> usize {
        if self.token(at) == "def" {
            self.names.clear();
            return at + 2;
        }
        // `from millrace.v1 import …`
        if self.token(at) == "from" && self.token(at + 1) == "millrace" {
            return self.imports(at + 5);
        }
        if !self.is_name(at) {
            return at + 1;
        }
        let name = self.token(at).to_owned();
        // An exception, a connection: nothing of the contract.
        if self.token(at.wrapping_sub(1)) == "as" {
            self.names.insert(name, Type::Plain);
            return at + 1;
        }
        match (self.token(at + 1), self.token(at + 2)) {
            ("=", sign) if sign != "=" => {
                let (value, next) = self.value(at + 2);
                self.names.insert(name, value);
                next
            }
            // An annotation: `name: module.Message`.
            (":", module) if self.modules.contains_key(module) => {
                let (class, next) = self.value(at + 2);
                let Type::Class(message) = class else { panic!("{name} is said to be {class:?}") };
                self.names.insert(name, Type::Message(message));
                next
            }
            ("in", _) if self.token(at.wrapping_sub(1)) == "for" => {
                let (value, next) = self.value(at + 2);
                let each = if let Type::Stream(message) = value { Type::Message(message) } else { Type::Unknown };
                self.names.insert(name, each);
                next
            }
            _ => self.value(at).1,
        }
    }

    fn imports(&mut self, mut at: usize) -> usize {
        while self.token(at) != "\n" {
            let name = self.token(at).to_owned();
            if name != "," {
                let (file, has_stubs) = match name.strip_suffix("_pb2_grpc") {
                    Some(file) => (file, true),
                    None => (name.strip_suffix("_pb2").unwrap(), false),
                };
                self.contract.file(file);
                let module = Type::Module { file: file.to_owned(), has_stubs };
                self.modules.insert(name, module);
            }
            at += 1;
        }
        at
    }

    /// A value that begins with a name: what it is, and where it ends.
    fn value(&mut self, mut at: usize) -> (Type, usize) {
        if !self.is_name(at) {
            return (Type::Unknown, at);
        }
        let name = self.token(at).to_owned();
        let mut value = self.names.get(&name).or_else(|| self.modules.get(&name)).cloned().unwrap_or(Type::Unknown);
        at += 1;
        loop {
            match self.token(at) {
                "." => {
                    let attribute = self.token(at + 1).to_owned();
                    value = self.attribute(&value, &attribute, at);
                    at += 2;
                }
                "(" => (value, at) = self.call(&value, at + 1),
                _ => return (value, at),
            }
        }
    }

    fn attribute(&mut self, of: &Type, name: &str, at: usize) -> Type {
        let contract = self.contract;
        let (owner, found) = match of {
            Type::Module { file, has_stubs } => (file.clone(), contract.of_module(file, *has_stubs, name)),
            Type::Message(message) if OF_EVERY_MESSAGE.contains(&name) => {
                if name == "HasField" {
                    let field = self.token(at + 3).trim_start_matches('"').to_owned();
                    contract.field(message, &field);
                    self.found.insert(format!("{message}.{field}"));
                }
                return Type::Plain;
            }
            Type::Message(message) => (message.clone(), contract.field(message, name)),
            Type::Stub(service) => (service.clone(), contract.call(service, name)),
            Type::Unknown => {
                let line = self.tokens[..at].iter().map(|token| token.matches('\n').count()).sum::<usize>() + 1;
                assert!(!self.fields.contains(name), "line {line}: of what is .{name} a field? Annotate it");
                return Type::Unknown;
            }
            Type::Enum(_) | Type::Plain => return Type::Plain,
            Type::Class(_) | Type::StubClass(_) | Type::Call { .. } | Type::Stream(_) => panic!("{of:?} has no {name}"),
        };
        self.found.insert(format!("{owner}.{name}"));
        found
    }

    /// A call's arguments, from behind the parenthesis: what it gives, and where it ends.
    fn call(&mut self, what: &Type, mut at: usize) -> (Type, usize) {
        while self.token(at) != ")" {
            let is_named = self.is_name(at) && self.token(at + 1) == "=" && self.token(at + 2) != "=";
            if is_named {
                if let Type::Class(message) = what {
                    let field = self.token(at).to_owned();
                    self.contract.field(message, &field);
                    self.found.insert(format!("{message}.{field}"));
                }
                at += 2;
            } else if self.is_name(at) {
                at = self.value(at).1;
            } else if self.token(at) == "(" {
                at = self.call(&Type::Plain, at + 1).1;
            } else {
                at += 1;
            }
            assert!(at < self.tokens.len(), "a parenthesis is not closed");
        }
        let gives = match what {
            Type::Class(message) => Type::Message(message.clone()),
            Type::StubClass(service) => Type::Stub(service.clone()),
            Type::Call { answers, is_stream: true } => Type::Stream(answers.clone()),
            Type::Call { answers, is_stream: false } => Type::Message(answers.clone()),
            Type::Plain | Type::Enum(_) => Type::Plain,
            Type::Module { .. } | Type::Message(_) | Type::Stub(_) | Type::Stream(_) | Type::Unknown => Type::Unknown,
        };
        (gives, at + 1)
    }
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/merchant.md");
    let text = std::fs::read_to_string(path).unwrap();
    let python = text.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(text.matches("```python").count(), 1, "there is a piece that nobody reads");
    python.to_owned()
}

fn contract() -> Contract {
    Contract(FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap())
}

#[test]
fn everything_that_the_python_names_is_in_the_contract() {
    let contract = contract();
    let python = page();
    let mut reader = Reader::new(&contract, &python);
    reader.read();
    // It would be worthless if nothing were found.
    for name in [
        "Invoices.Create",
        "Invoices.Settle",
        "Invoices.Cancel",
        "Events.Subscribe",
        "CreateInvoiceRequest.idempotency_key",
        "CreateInvoiceResponse.invoice",
        "Invoice.bolt11",
        "Invoice.payment_hash",
        "SubscribeRequest.from_cursor",
        "Cursor.frame",
        "Event.cursor",
        "Event.invoice_created",
        "Event.invoice_paid",
        "InvoiceCreated.idempotency_key",
        "InvoicePaid.received_msat",
        "InvoicePaid.payment_hash",
        "SettleInvoiceRequest.payment_hash",
        "CancelInvoiceResponse.invoice",
        "ErrorDetail.hint",
        "common.ErrorReason",
    ] {
        assert!(reader.found.contains(name), "{name} is not in {:?}", reader.found);
    }
}

/// Each name of the page, changed a little where it stands: every one of them must be missed.
#[test]
fn a_name_that_the_contract_has_not_is_seen() {
    let (contract, python) = (contract(), page());
    for name in [
        "invoices_pb2_grpc.InvoicesStub",
        "invoices_pb2.InvoiceStatus",
        ".Subscribe(",
        "invoices_pb2.CreateInvoiceRequest",
        "from_cursor",
        "event.cursor",
        "cursor.index",
        "\"invoice_created",
        "event.invoice_paid",
        "paid.received_msat",
        "paid.payment_hash",
        "created.idempotency_key",
        "answer.invoice",
        "invoice.bolt11",
        "hold",
        "detail.hint",
    ] {
        let changed = match name {
            ".Subscribe(" => python.replace(name, ".Subscribed("),
            // The word also stands elsewhere.
            "hold" => python.replace("hold=True", "held=True"),
            _ => python.replace(name, &format!("{name}x")),
        };
        assert_ne!(changed, python, "{name} is not on the page");
        let read = std::panic::catch_unwind(|| Reader::new(&contract, &changed).read());
        assert!(read.is_err(), "{name} may be called anything");
    }
}
