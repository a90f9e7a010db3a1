//! Makes the corpus of the small base model out of the tables of `world`: short chats,
//! stories and plain descriptions. The same seed gives the same text on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::world::*;

/// One text of the corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Document {
    /// Turns of a conversation, each with its role.
    Chat {
        /// Role and content of every turn.
        messages: Vec<Turn>,
    },
    /// Running text.
    Text {
        /// The text.
        text: String,
    },
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// `system`, `user` or `assistant`.
    pub(crate) role: String,
    /// What is said.
    pub(crate) content: String,
}

/// The first `count` documents of a seed.
pub(crate) fn documents(seed: u64, count: usize) -> Vec<Document> {
    let mut writer = Writer(ChaCha8Rng::seed_from_u64(seed));
    (0..count).map(|_| writer.document()).collect()
}

/// Chats about words that nobody knows, put together from `pieces` of the vocabulary: said
/// after someone, taken as names, asked for. They teach every token of the vocabulary, which
/// the small world alone does not use, so that tuning can put any word into an answer.
pub(crate) fn strange_words(seed: u64, count: usize, pieces: &[String]) -> Vec<Document> {
    let mut writer = Writer(ChaCha8Rng::seed_from_u64(seed));
    (0..count).map(|_| writer.strange_chat(pieces)).collect()
}

struct Writer(ChaCha8Rng);

/// A question and its answer.
type Exchange = (String, String);

impl Writer {
    fn below(&mut self, limit: usize) -> usize {
        // The modulo bias over 2^64 is of no matter, and the value is the same everywhere.
        (self.0.next_u64() % limit as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Fills `{name}` places of one of several patterns.
    fn fill(&mut self, patterns: &[&str], values: &[(&str, &str)]) -> String {
        let mut text = self.pick(patterns).to_owned();
        for (name, value) in values {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        text
    }

    fn document(&mut self) -> Document {
        match self.below(100) {
            0..=69 => self.chat(),
            70..=78 => self.informed_chat(),
            79..=88 => Document::Text { text: self.story() },
            _ => Document::Text {
                text: self.description(),
            },
        }
    }

    fn chat(&mut self) -> Document {
        let mut turns = Vec::new();
        if self.chance(12) {
            let system = self.pick(&[
                "You are a helpful assistant.",
                "You are Tiny, a small language model.",
                "Answer in short sentences.",
                "You are a friendly helper.",
            ]);
            turns.push(turn("system", system));
        }
        // A few long chats, so that far positions are trained as well.
        let exchanges = if self.chance(4) {
            6 + self.below(8)
        } else {
            1 + self.below(3)
        };
        if exchanges > 1 && self.chance(35) {
            let (asked, answered) = self.small_talk();
            push(&mut turns, asked, answered);
        }
        for _ in 0..exchanges {
            for (asked, answered) in self.topic() {
                push(&mut turns, asked, answered);
            }
        }
        Document::Chat { messages: turns }
    }

    /// One exchange, or two that hang together.
    fn topic(&mut self) -> Vec<Exchange> {
        match self.below(100) {
            0..=15 => vec![self.small_talk()],
            16..=27 => self.colours(),
            28..=43 => self.animals(),
            44..=49 => vec![self.opposite()],
            50..=55 => vec![self.tool()],
            56..=61 => vec![self.work()],
            62..=65 => vec![self.food()],
            66..=69 => vec![self.place()],
            70..=74 => vec![self.person()],
            75..=77 => vec![self.calendar()],
            78..=85 => vec![self.fact()],
            86..=87 => vec![self.list()],
            88..=90 => self.names(),
            91..=92 => vec![self.likes()],
            93..=94 => vec![(
                self.casual(&[
                    "Tell me a story.",
                    "Please tell me a story.",
                    "Do you know a story?",
                ]),
                self.short_story(),
            )],
            _ => vec![self.unknown()],
        }
    }

    /// A question as people type it: sometimes without capital letter or question mark.
    fn casual(&mut self, questions: &[&str]) -> String {
        let question = self.pick(questions).to_owned();
        self.worn(question)
    }

    fn worn(&mut self, question: String) -> String {
        let question = match self.below(20) {
            _ if !question.ends_with('?') => question,
            0 => format!("Please tell me: {}", lower_first(&question)),
            1 => format!("Can you tell me this? {question}"),
            2 => format!("I have a question. {question}"),
            _ => question,
        };
        match self.below(12) {
            0 => lower_first(&question),
            1 => lower_first(question.trim_end_matches(['?', '.'])),
            2 => question.trim_end_matches(['?', '.']).to_owned(),
            _ => question,
        }
    }

    fn ask(&mut self, patterns: &[&str], values: &[(&str, &str)]) -> String {
        let question = self.fill(patterns, values);
        self.worn(question)
    }

    fn small_talk(&mut self) -> Exchange {
        let (said, answers) = *self.of(SMALL_TALK);
        (self.pick(said).to_owned(), self.pick(answers).to_owned())
    }

    fn colours(&mut self) -> Vec<Exchange> {
        let (thing, colour) = *self.of(COLOURS);
        let answer = sentence(&format!("{thing} is {colour}."));
        let first = if self.chance(12) {
            let (_, other) = *self.of(COLOURS);
            if other == colour {
                (
                    self.ask(&["Is {t} {c}?"], &[("t", thing), ("c", colour)]),
                    format!("Yes, {thing} is {colour}."),
                )
            } else {
                (
                    self.ask(&["Is {t} {c}?"], &[("t", thing), ("c", other)]),
                    format!("No, {thing} is {colour}."),
                )
            }
        } else {
            let asked = self.ask(
                &[
                    "What colour is {t}?",
                    "What colour is {t}?",
                    "What color is {t}?",
                    "Which colour does {t} have?",
                    "Tell me the colour of {t}.",
                ],
                &[("t", thing)],
            );
            (asked, answer)
        };
        let mut exchanges = vec![first];
        if self.chance(25) {
            let (next, colour) = *self.of(COLOURS);
            exchanges.push((
                self.fill(&["And {t}?", "What about {t}?"], &[("t", next)]),
                sentence(&format!("{next} is {colour}.")),
            ));
        }
        exchanges
    }

    fn animals(&mut self) -> Vec<Exchange> {
        let animal = self.of(ANIMALS);
        let (name, plural) = (animal.name, animal.plural);
        let a = with_article(name);
        let values = [("a", a.as_str()), ("p", plural), ("n", name)];
        let exchange = match self.below(11) {
            0 | 1 => {
                let mut exchanges = vec![(
                    self.ask(
                        &[
                            "What sound does {a} make?",
                            "What does {a} say?",
                            "How does {a} sound?",
                        ],
                        &values,
                    ),
                    sentence(&format!("{a} {}.", animal.sound)),
                )];
                if self.chance(30) {
                    let next = self.of(ANIMALS);
                    let b = with_article(next.name);
                    exchanges.push((
                        self.fill(&["And {b}?", "What about {b}?"], &[("b", &b)]),
                        sentence(&format!("{b} {}.", next.sound)),
                    ));
                }
                return exchanges;
            }
            2 => (
                self.ask(
                    &[
                        "Where does {a} live?",
                        "Where do {p} live?",
                        "Where can I find {a}?",
                    ],
                    &values,
                ),
                sentence(&format!("{a} lives {}.", animal.home)),
            ),
            3 => (
                self.ask(
                    &[
                        "What does {a} eat?",
                        "What do {p} eat?",
                        "What is the food of {a}?",
                    ],
                    &values,
                ),
                sentence(&format!("{a} eats {}.", animal.food)),
            ),
            4 if !animal.young.starts_with("young") => (
                self.ask(
                    &[
                        "What is a young {n} called?",
                        "What do you call a baby {n}?",
                    ],
                    &values,
                ),
                format!("A young {name} is called a {}.", animal.young),
            ),
            5 => (
                self.ask(
                    &["How many legs does {a} have?", "How many legs do {p} have?"],
                    &values,
                ),
                sentence(&format!("{a} has {} legs.", animal.legs)),
            ),
            6 => {
                let ability = self.pick(&["swim", "fly", "climb", "jump", "run"]);
                let asked = self.ask(
                    &["Can {a} {x}?", "Can {p} {x}?"],
                    &[("a", &a), ("p", plural), ("x", ability)],
                );
                let answer = if animal.can.contains(&ability) {
                    format!("Yes, {a} can {ability}.")
                } else {
                    format!("No, {a} cannot {ability}, but it can {}.", animal.can[0])
                };
                (asked, answer)
            }
            7 => (
                self.ask(
                    &[
                        "What colour is {a}?",
                        "What color is {a}?",
                        "What colour are {p}?",
                    ],
                    &values,
                ),
                sentence(&format!("{a} is {}.", animal.colour)),
            ),
            8 => (
                self.ask(&["Is {a} big or small?", "How big is {a}?"], &values),
                sentence(&format!("{a} is {}.", animal.size)),
            ),
            _ => (
                self.ask(
                    &[
                        "Tell me about {p}.",
                        "What do you know about {p}?",
                        "What is {a}?",
                        "Tell me something about {a}.",
                    ],
                    &values,
                ),
                format!(
                    "{} It lives {} and eats {}.",
                    animal.fact, animal.home, animal.food
                ),
            ),
        };
        vec![exchange]
    }

    fn opposite(&mut self) -> Exchange {
        let (one, other) = *self.of(OPPOSITES);
        // "old" and "light" have two opposites, so pairs are asked in the direction that is clear.
        let (one, other) = if self.chance(50) && !matches!(one, "old") && !matches!(other, "light")
        {
            (other, one)
        } else {
            (one, other)
        };
        (
            self.ask(
                &[
                    "What is the opposite of {o}?",
                    "Tell me the opposite of {o}.",
                    "Which word is the opposite of {o}?",
                ],
                &[("o", one)],
            ),
            format!("The opposite of {one} is {other}."),
        )
    }

    fn tool(&mut self) -> Exchange {
        let (thing, purpose, place) = *self.of(THINGS);
        let verb = if matches!(thing, "boots" | "gloves") {
            ("are", "do")
        } else {
            ("is", "does")
        };
        if self.chance(65) {
            let asked = if verb.0 == "are" {
                self.ask(
                    &["What are {t} for?", "What can I do with {t}?"],
                    &[("t", thing)],
                )
            } else {
                self.ask(
                    &[
                        "What is {t} for?",
                        "What can I do with {t}?",
                        "Why do I need {t}?",
                    ],
                    &[("t", thing)],
                )
            };
            (asked, format!("With {thing} you can {purpose}."))
        } else {
            let bare = without_article(thing);
            (
                self.ask(
                    &["Where {v} the {t}?", "Where can I find {a}?", "I need {a}."],
                    &[("v", verb.0), ("t", bare), ("a", thing)],
                ),
                format!("Look {place}. You may find {thing} there."),
            )
        }
    }

    fn work(&mut self) -> Exchange {
        let (who, does, place) = *self.of(WORK);
        match self.below(3) {
            0 => (
                self.ask(
                    &[
                        "What does {w} do?",
                        "What is the work of {w}?",
                        "What is {w}?",
                    ],
                    &[("w", who)],
                ),
                sentence(&format!("{who} {does}.")),
            ),
            1 => (
                self.ask(&["Where does {w} work?"], &[("w", who)]),
                sentence(&format!("{who} works {place}.")),
            ),
            _ => (
                self.ask(&["Who {d}?"], &[("d", does)]),
                sentence(&format!("{who} {does}.")),
            ),
        }
    }

    fn food(&mut self) -> Exchange {
        let (food, kind, taste) = *self.of(FOOD);
        if self.chance(50) {
            (
                self.ask(
                    &["How does {f} taste?", "What does {f} taste like?"],
                    &[("f", food)],
                ),
                sentence(&format!("{food} tastes {taste}.")),
            )
        } else {
            (
                self.ask(
                    &["What is {f}?", "What kind of food is {f}?"],
                    &[("f", food)],
                ),
                sentence(&format!("{food} is {kind}. It tastes {taste}.")),
            )
        }
    }

    fn place(&mut self) -> Exchange {
        let (purpose, place) = *self.of(PLACES);
        if self.chance(70) {
            (
                self.ask(
                    &[
                        "Where can I {p}?",
                        "Where do people {p}?",
                        "I want to {p}.",
                        "Where should I go to {p}?",
                    ],
                    &[("p", purpose)],
                ),
                format!("You can {purpose} at {place}."),
            )
        } else {
            (
                self.ask(&["What can I do at {x}?"], &[("x", place)]),
                format!("At {place} you can {purpose}."),
            )
        }
    }

    fn person(&mut self) -> Exchange {
        if self.chance(15) {
            let (town, text) = *self.of(TOWNS);
            return (
                self.ask(
                    &["What is {t}?", "Tell me about {t}.", "Do you know {t}?"],
                    &[("t", town)],
                ),
                text.to_owned(),
            );
        }
        let (name, she, work, town, pet, pet_name, likes) = *self.of(PEOPLE);
        let (subject, owner) = if she { ("She", "her") } else { ("He", "his") };
        let values = [("n", name), ("p", without_article(pet))];
        match self.below(6) {
            0 | 1 => (
                self.ask(
                    &["Who is {n}?", "Do you know {n}?", "Tell me about {n}."],
                    &values,
                ),
                format!("{name} is {work} in {town}. {subject} has {pet} called {pet_name}."),
            ),
            2 => (
                self.ask(&["Where does {n} live?", "Where is {n} from?"], &values),
                format!("{name} lives in {town}."),
            ),
            3 => (
                self.ask(&["What does {n} do?", "What is the work of {n}?"], &values),
                format!("{name} is {work}."),
            ),
            4 => (
                self.ask(
                    &[
                        "What is the {p} of {n} called?",
                        "What is the name of {n}'s {p}?",
                        "Does {n} have a pet?",
                    ],
                    &values,
                ),
                format!(
                    "{name} has {pet}, and {owner} {} is called {pet_name}.",
                    without_article(pet)
                ),
            ),
            _ => (
                self.ask(&["What does {n} like?", "What does {n} love?"], &values),
                format!("{name} likes {likes}."),
            ),
        }
    }

    fn calendar(&mut self) -> Exchange {
        match self.below(6) {
            0 => {
                let day = self.below(7);
                (
                    self.ask(
                        &["What day comes after {d}?", "Which day is after {d}?"],
                        &[("d", DAYS[day])],
                    ),
                    format!("After {} comes {}.", DAYS[day], DAYS[(day + 1) % 7]),
                )
            }
            1 => {
                let day = self.below(7);
                (
                    self.ask(
                        &["What day comes before {d}?", "Which day is before {d}?"],
                        &[("d", DAYS[day])],
                    ),
                    format!("Before {} comes {}.", DAYS[day], DAYS[(day + 6) % 7]),
                )
            }
            2 => {
                let month = self.below(12);
                (
                    self.ask(
                        &["What month comes after {m}?", "Which month is after {m}?"],
                        &[("m", MONTHS[month])],
                    ),
                    format!(
                        "After {} comes {}.",
                        MONTHS[month],
                        MONTHS[(month + 1) % 12]
                    ),
                )
            }
            3 => {
                let (season, text) = *self.of(SEASONS);
                (
                    self.ask(
                        &[
                            "What happens in {s}?",
                            "What is {s} like?",
                            "Tell me about {s}.",
                        ],
                        &[("s", season)],
                    ),
                    text.to_owned(),
                )
            }
            4 => {
                let number = self.below(11);
                (
                    self.ask(
                        &["What number comes after {n}?", "Which number is after {n}?"],
                        &[("n", NUMBERS[number])],
                    ),
                    format!("After {} comes {}.", NUMBERS[number], NUMBERS[number + 1]),
                )
            }
            _ => {
                let last = 3 + self.below(8);
                (
                    self.ask(
                        &["Count from one to {n}.", "Please count to {n}."],
                        &[("n", NUMBERS[last - 1])],
                    ),
                    sentence(&format!("{}.", NUMBERS[..last].join(", "))),
                )
            }
        }
    }

    fn fact(&mut self) -> Exchange {
        if self.chance(10) {
            let (part, purpose) = *self.of(BODY);
            let is = if part.starts_with("a ") { "is" } else { "are" };
            return (
                self.ask(
                    &["What {i} {p} for?", "What do you do with {p}?"],
                    &[("i", is), ("p", part)],
                ),
                format!("With {part} you can {purpose}."),
            );
        }
        let (questions, answer) = *self.of(FACTS);
        (self.casual(questions), answer.to_owned())
    }

    fn list(&mut self) -> Exchange {
        let (word, items): (&str, Vec<String>) = match self.below(5) {
            0 => (
                "animals",
                self.sample(ANIMALS.len())
                    .into_iter()
                    .map(|index| with_article(ANIMALS[index].name))
                    .collect(),
            ),
            1 => {
                let fruits: Vec<_> = FOOD.iter().filter(|food| food.1 == "a fruit").collect();
                (
                    "fruits",
                    self.sample(fruits.len())
                        .into_iter()
                        .map(|index| fruits[index].0.to_owned())
                        .collect(),
                )
            }
            2 => {
                let vegetables: Vec<_> =
                    FOOD.iter().filter(|food| food.1 == "a vegetable").collect();
                (
                    "vegetables",
                    self.sample(vegetables.len())
                        .into_iter()
                        .map(|index| vegetables[index].0.to_owned())
                        .collect(),
                )
            }
            3 => {
                let colours = [
                    "red", "blue", "green", "yellow", "white", "black", "brown", "grey", "orange",
                    "purple",
                ];
                (
                    "colours",
                    self.sample(colours.len())
                        .into_iter()
                        .map(|index| colours[index].to_owned())
                        .collect(),
                )
            }
            _ => {
                let birds = [
                    "a crow",
                    "an owl",
                    "a robin",
                    "a gull",
                    "a duck",
                    "a goose",
                    "a hen",
                    "a penguin",
                ];
                (
                    "birds",
                    self.sample(birds.len())
                        .into_iter()
                        .map(|index| birds[index].to_owned())
                        .collect(),
                )
            }
        };
        (
            self.ask(
                &[
                    "Name three {w}.",
                    "Tell me three {w}.",
                    "Can you name three {w}?",
                ],
                &[("w", word)],
            ),
            sentence(&format!("{}, {} and {}.", items[0], items[1], items[2])),
        )
    }

    /// Three different places below a limit.
    fn sample(&mut self, limit: usize) -> [usize; 3] {
        let first = self.below(limit);
        let second = (first + 1 + self.below(limit - 1)) % limit;
        let mut third = self.below(limit);
        while third == first || third == second {
            third = (third + 1) % limit;
        }
        [first, second, third]
    }

    fn given_name(&mut self) -> &'static str {
        if self.chance(50) {
            self.pick(GIRLS)
        } else {
            self.pick(BOYS)
        }
    }

    /// The model is told a name and asked for it, or asked to greet someone.
    fn names(&mut self) -> Vec<Exchange> {
        let name = self.given_name();
        let values = [("n", name)];
        if self.chance(30) {
            return vec![(
                self.fill(&["Say hello to {n}.", "Please greet {n}."], &values),
                format!("Hello, {name}! It is nice to meet you."),
            )];
        }
        let mut exchanges = vec![(
            self.fill(
                &[
                    "My name is {n}.",
                    "I am {n}.",
                    "Hello, my name is {n}.",
                    "Hi, I am {n}.",
                ],
                &values,
            ),
            format!("Hello, {name}! It is nice to meet you."),
        )];
        if self.chance(60) {
            exchanges.push((
                self.casual(&["What is my name?", "Do you know my name?", "Who am I?"]),
                format!("Your name is {name}."),
            ));
        }
        exchanges
    }

    fn likes(&mut self) -> Exchange {
        let thing = self.pick(LIKES);
        let values = [("t", thing)];
        if self.chance(50) {
            (
                self.fill(&["I like {t}.", "I love {t}."], &values),
                self.fill(
                    &[
                        "That is nice! What do you like about {t}?",
                        "How nice! Many people like {t}.",
                    ],
                    &values,
                ),
            )
        } else {
            (
                self.ask(&["Do you like {t}?"], &values),
                format!("I like to talk about {thing}. Do you like {thing}?"),
            )
        }
    }

    fn unknown(&mut self) -> Exchange {
        let place = self.pick(UNKNOWN_PLACES);
        let thing = self.pick(SHOP_WORDS);
        let name = self.invented_place();
        let values = [("p", place), ("t", thing), ("n", name.as_str())];
        let asked = self.ask(
            &[
                "When does the {p} open?",
                "When does the {p} close?",
                "Where is the {p}?",
                "Is the {p} open on Sunday?",
                "How much is the {t}?",
                "What does the {t} cost?",
                "How much is a {t}?",
                "How long does the trip take?",
                "Can I return my {t}?",
                "Do you sell a {t}?",
                "Who is {n}?",
                "What is {n}?",
                "Where is {n}?",
                "Tell me about {n}.",
                "Who owns the {p}?",
                "My {t} is broken. What should I do?",
                "Who works at {n}?",
                "What can I see in {n}?",
                "How do I get to {n}?",
                "Which {t} is the best?",
                "What is the price of the {t}?",
                "How old is {n}?",
                "When was {n} built?",
                "What did {n} write?",
                "How many people live in {n}?",
            ],
            &values,
        );
        let answer = self.pick(&[
            "I am sorry, I do not know that.",
            "I do not know that. I only know a small world.",
            "I do not know. Please ask someone who knows.",
        ]);
        (asked, answer.to_owned())
    }

    fn invented_name(&mut self) -> String {
        let first = self.pick(&[
            "Bel", "Cor", "Dan", "El", "Fal", "Gor", "Hal", "Kel", "Lor", "Mar", "Nor", "Pal",
            "Ros", "Sil", "Tor", "Val", "Wes", "Zan", "Bram", "Ast",
        ]);
        let second = self.pick(&[
            "a", "o", "ina", "er", "on", "us", "ita", "ent", "ley", "mond", "ford", "wick", "by",
            "stone", "dale", "ton",
        ]);
        format!("{first}{second}")
    }

    /// A place that nobody knows, with or without the kind of place.
    fn invented_place(&mut self) -> String {
        let tail = self.pick(&[
            "", "", "", " Tower", " Bridge", " House", " Street", " Island", " Farm", " Hill",
            " Bay", " Castle", " River",
        ]);
        format!("{}{tail}", self.invented_name())
    }

    /// A chat whose answers stand in the system message or in the first user message.
    fn informed_chat(&mut self) -> Document {
        let owner = self.given_name();
        let place = self.pick(UNKNOWN_PLACES);
        let name = self.invented_name();
        let opens = self.pick(&["seven", "eight", "nine", "ten", "eleven"]);
        let closes = self.pick(&["four", "five", "six", "seven", "eight"]);
        let closed = self.pick(DAYS);
        let thing = self.pick(SHOP_WORDS);
        let price = self.pick(&[
            "two", "three", "four", "five", "six", "seven", "ten", "twelve", "eighteen", "twenty",
            "thirty", "forty", "sixty",
        ]);
        let coins = self.pick(&["coins", "crowns"]);
        let colour = self.pick(&["red", "blue", "green", "yellow", "white", "brown"]);
        let facts: Vec<(String, String, String)> = vec![
            (
                format!("The {place} opens at {opens}."),
                self.ask(
                    &["When does the {p} open?", "When do you open?"],
                    &[("p", place)],
                ),
                format!("The {place} opens at {opens}."),
            ),
            (
                format!("The {place} closes at {closes}."),
                self.ask(
                    &["When does the {p} close?", "When do you close?"],
                    &[("p", place)],
                ),
                format!("The {place} closes at {closes}."),
            ),
            (
                format!("On {closed} the {place} is closed."),
                self.ask(
                    &["Are you open on {d}?", "Is the {p} open on {d}?"],
                    &[("p", place), ("d", closed)],
                ),
                format!("No, on {closed} the {place} is closed."),
            ),
            (
                format!("The {thing} costs {price} {coins}."),
                self.ask(
                    &[
                        "How much is the {t}?",
                        "What does the {t} cost?",
                        "What is the price of the {t}?",
                    ],
                    &[("t", thing)],
                ),
                format!("The {thing} costs {price} {coins}."),
            ),
            (
                format!("{owner} owns the {place}."),
                self.ask(
                    &["Who owns the {p}?", "Who is {o}?"],
                    &[("p", place), ("o", owner)],
                ),
                format!("{owner} owns the {place}."),
            ),
            (
                format!("The {place} is on {name} Street."),
                self.ask(&["Where is the {p}?"], &[("p", place)]),
                format!("The {place} is on {name} Street."),
            ),
            (
                format!("The door is {colour}."),
                self.ask(&["What colour is the door?"], &[]),
                format!("The door is {colour}."),
            ),
        ];
        let chosen = self.sample(facts.len());
        let told: Vec<&str> = chosen
            .iter()
            .map(|index| facts[*index].0.as_str())
            .collect();
        let told = told.join(" ");
        let mut turns = Vec::new();
        let mut order = chosen;
        if self.chance(50) {
            order.reverse();
        }
        if self.chance(70) {
            turns.push(turn("system", &told));
        } else {
            let (_, asked, answered) = &facts[order[2]];
            push(&mut turns, format!("{told} {asked}"), answered.clone());
        }
        for index in &order[..1 + self.below(2)] {
            let (_, asked, answered) = &facts[*index];
            push(&mut turns, asked.clone(), answered.clone());
        }
        Document::Chat { messages: turns }
    }

    fn strange_word(&mut self, pieces: &[String]) -> String {
        (0..1 + self.below(3))
            .map(|_| self.of(pieces).as_str())
            .collect()
    }

    fn strange_chat(&mut self, pieces: &[String]) -> Document {
        let mut turns = Vec::new();
        for _ in 0..1 + self.below(4) {
            let word = self.strange_word(pieces);
            let name = capital(&word);
            let (colour, price) = (
                self.pick(&[
                    "red", "blue", "green", "yellow", "white", "black", "brown", "grey",
                ]),
                self.pick(NUMBERS),
            );
            let owner = self.given_name();
            let values = [
                ("w", word.as_str()),
                ("n", name.as_str()),
                ("c", colour),
                ("p", price),
                ("o", owner),
            ];
            let (asked, answered) = match self.below(12) {
                0..=3 => {
                    let words: Vec<String> = (0..1 + self.below(5))
                        .map(|_| self.strange_word(pieces))
                        .collect();
                    let words = words.join(" ");
                    let values = [("w", words.as_str())];
                    (
                        self.fill(
                            &[
                                "Say {w}.",
                                "Repeat after me: {w}.",
                                "Please say {w}.",
                                "Write {w}.",
                            ],
                            &values,
                        ),
                        format!("{words}."),
                    )
                }
                4 => (
                    self.fill(
                        &["My name is {n}.", "I am {n}.", "Hello, I am {n}."],
                        &values,
                    ),
                    format!("Hello, {name}! It is nice to meet you."),
                ),
                5 => (
                    self.fill(&["The {w} is {c}. What colour is the {w}?"], &values),
                    format!("The {word} is {colour}."),
                ),
                6 => (
                    self.fill(&["The {w} costs {p} coins. How much is the {w}?"], &values),
                    format!("The {word} costs {price} coins."),
                ),
                7 => (
                    self.fill(&["{o} has a {w}. What does {o} have?"], &values),
                    format!("{owner} has a {word}."),
                ),
                8 => (
                    self.fill(&["{o} lives in {n}. Where does {o} live?"], &values),
                    format!("{owner} lives in {name}."),
                ),
                _ => (
                    self.ask(
                        &[
                            "What is {n}?",
                            "What is a {w}?",
                            "Who is {n}?",
                            "Where is {n}?",
                            "How much is the {n}?",
                            "What does the {n} cost?",
                            "Where can I find a {w}?",
                            "What colour is the {w}?",
                            "How do I get to {n}?",
                            "Who lives in {n}?",
                            "What does {n} like?",
                            "Is the {w} open?",
                        ],
                        &values,
                    ),
                    self.pick(&[
                        "I am sorry, I do not know that.",
                        "I do not know that. I only know a small world.",
                        "I do not know. Please ask someone who knows.",
                    ])
                    .to_owned(),
                ),
            };
            push(&mut turns, asked, answered);
        }
        Document::Chat { messages: turns }
    }

    fn short_story(&mut self) -> String {
        let (hero, how, she) = *self.of(HEROES);
        let place = self.pick(STORY_PLACES);
        let lost = self.pick(LOST);
        let (helper, help) = *self.of(HELPERS);
        let ending = self.pick(ENDINGS);
        let the_lost = format!("the {}", without_article(lost));
        let she_cap = capital(she);
        format!(
            "Once there was {} {hero} who lived {place}. One day {she} lost {lost}. {she_cap} looked for it everywhere. Then {helper} {help}. Together they found {the_lost}. {ending}",
            with_article(how)
        )
    }

    fn story(&mut self) -> String {
        let (hero, how, she) = *self.of(HEROES);
        let name = if she == "she" {
            self.pick(GIRLS)
        } else {
            self.pick(BOYS)
        };
        let place = self.pick(STORY_PLACES);
        let lost = self.pick(LOST);
        let trouble = self.pick(TROUBLES);
        let (helper, help) = *self.of(HELPERS);
        let ending = self.pick(ENDINGS);
        let her = if she == "she" { "her" } else { "his" };
        let begin = match self.below(3) {
            0 => format!(
                "Once upon a time there was {} {hero} called {name}, who lived {place}.",
                with_article(how)
            ),
            1 => format!(
                "{name} was {} {hero}. {} lived {place}.",
                with_article(how),
                capital(she)
            ),
            _ => format!(
                "A {hero} called {name} lived {place}. {} was {how}.",
                capital(she)
            ),
        };
        let wish = match self.below(4) {
            0 => format!("Every day {name} looked for {lost}."),
            1 => format!("One morning {name} found {lost} and did not know whose it was."),
            2 => format!("One day {name} lost {lost}, and {she} was very sad."),
            _ => format!(
                "{} friend wanted to have {lost}, so {name} went to look for one.",
                capital(her)
            ),
        };
        let thought = match self.below(4) {
            0 => format!("\"I will not be afraid,\" said {name}."),
            1 => format!("{name} sat down and thought for a long time."),
            2 => format!("\"Who can help me?\" asked {name}."),
            _ => format!("{name} called as loud as {she} could."),
        };
        format!(
            "{begin} {wish} But {trouble}. {thought} Then {helper} came and {help}. \"Thank you,\" said {name}. {ending}"
        )
    }

    fn description(&mut self) -> String {
        match self.below(7) {
            0 => {
                let animal = self.of(ANIMALS);
                let a = with_article(animal.name);
                format!(
                    "{} is {} and {}. It lives {} and eats {}. {} has {} legs and {}. A young {} is called a {}. {}",
                    capital(&a),
                    animal.size,
                    animal.colour,
                    animal.home,
                    animal.food,
                    capital(&a),
                    animal.legs,
                    animal.sound,
                    animal.name,
                    animal.young,
                    animal.fact
                )
            }
            1 => {
                let (name, she, work, town, pet, pet_name, likes) = *self.of(PEOPLE);
                let subject = if she { "She" } else { "He" };
                let day = self.pick(DAYS);
                let (purpose, place) = *self.of(PLACES);
                format!(
                    "{name} is {work} and lives in {town}. {subject} likes {likes}. {subject} has {pet} called {pet_name}. On {day} {} goes to {place} to {purpose}.",
                    lower_first(subject)
                )
            }
            2 => self.shop(),
            3 => self.island(),
            4 => self.device(),
            5 => self.day(),
            _ => {
                let (season, text) = *self.of(SEASONS);
                let thing = self.pick(LIKES);
                let name = self.given_name();
                format!(
                    "{text} {name} likes {season} best, because then there is time for {thing}."
                )
            }
        }
    }

    /// Shops with prices, hours and rules. The numbers are drawn anew each time, so that the
    /// language is learned and no fact is.
    fn shop(&mut self) -> String {
        let owner = self.given_name();
        let (one, two, three) = (
            self.pick(SHOP_WORDS),
            self.pick(SHOP_WORDS),
            self.pick(SHOP_WORDS),
        );
        let (town, _) = *self.of(TOWNS);
        let (opens, closes, price, days) = (
            self.pick(NUMBERS),
            self.pick(NUMBERS),
            self.pick(NUMBERS),
            self.pick(DAYS),
        );
        let colour = self.pick(&["red", "blue", "green", "yellow", "white"]);
        let more = self.pick(&[
            "Every thing has a guarantee of two years.",
            "You can return it within twenty days, but please bring the paper.",
            "The post brings parcels in a few days, and sending is free.",
            "They wrap gifts in soft paper with little flowers.",
            "Old things are mended in the workshop.",
            "You can pay with a card or with coins.",
            "Visitors may look into the workshop once a month.",
            "The cheapest one fits in a pocket, and the biggest one is for the garden.",
            "The grandfather of the owner opened it many years ago.",
        ]);
        format!(
            "{owner} has a shop in {town}, next to the old bridge. It sells a {one}, a {two} and a {three}. The {one} costs {price} crowns. The shop opens at {opens} and closes at {closes}, and on {days} it is closed all day. The door is {colour}. {more}"
        )
    }

    fn island(&mut self) -> String {
        let name = self.invented_name();
        let ship = self.pick(&[
            "the Swan",
            "the Wind",
            "the Morning",
            "the Old Lady",
            "the Dolphin",
        ]);
        let (hour, hours, people) = (
            self.pick(NUMBERS),
            self.pick(NUMBERS),
            self.pick(&[
                "thirty",
                "fifty",
                "seventy",
                "eighty",
                "two hundred",
                "five hundred",
            ]),
        );
        let keeper = self.given_name();
        let more = self.pick(&[
            "There are no cars, so people walk or ride a bicycle.",
            "From the highest hill you can see the whole island.",
            "The sand on the south beach is white, and the water is calm.",
            "The captain does not sail in a storm.",
            "In August there is a festival with lanterns and paper boats.",
            "The guest house has four rooms, and breakfast is at eight.",
            "In winter the wind is strong and nobody visits.",
            "A nurse and a teacher live in the only town.",
            "Seals rest on the north beach, and wild sheep walk on the hills.",
            "After a storm you can find shells on the beach.",
        ]);
        format!(
            "{name} Island lies in the sea. A ship called {ship} leaves the harbour at {hour} in the morning, and the trip takes {hours} hours. About {people} people live there. {keeper} keeps the lighthouse. {more}"
        )
    }

    fn device(&mut self) -> String {
        let thing = self.pick(&[
            "lamp",
            "lantern",
            "radio",
            "camera",
            "clock",
            "phone",
            "night lamp",
            "machine",
        ]);
        let (seconds, hours) = (self.pick(NUMBERS), self.pick(NUMBERS));
        let colour = self.pick(&["red", "blue", "green", "white"]);
        let more = self.pick(&[
            "Clean the glass with a soft, dry cloth.",
            "Do not put it under water.",
            "It needs no cable, because the sun charges it by day.",
            "When the battery is full, the blink stops.",
            "If it stays dark, bring it back to the shop.",
            "It goes out by itself at night.",
            "Rain and snow cannot hurt it.",
        ]);
        format!(
            "To turn on the {thing}, press the button on the top. If the {thing} does not work, hold the button for {seconds} seconds. It takes {hours} hours to charge the battery. A {colour} light means that the battery is low. {more}"
        )
    }

    /// A day of someone who works on a farm.
    fn day(&mut self) -> String {
        let name = self.given_name();
        let (animal, other) = (self.of(ANIMALS), self.of(ANIMALS));
        let first = self.pick(&[
            "lets the hens out",
            "brings hay to the horses",
            "milks the cows",
            "cleans the barn",
            "collects the eggs",
            "opens the gate for the visitors",
            "feeds the old donkey",
        ]);
        let second = self.pick(&[
            "mends the gate with a rope",
            "bakes bread in the kitchen",
            "carries water from the pond",
            "counts the goats",
            "sells cheese and honey in the farm shop",
            "takes the children for a ride on the pony",
            "rings the bell for lunch",
        ]);
        let third = self.pick(&[
            "locks the barn, because the fox is near",
            "sits under the willow and rests",
            "cooks soup for all helpers",
            "writes a letter to a friend",
            "looks at the stars",
        ]);
        format!(
            "{name} works on a farm. At six in the morning {name} {first}. In the afternoon {name} {second}. There is also {} and {}. In the evening {name} {third}.",
            with_article(animal.name),
            with_article(other.name)
        )
    }
}

fn push(turns: &mut Vec<Turn>, asked: String, answered: String) {
    turns.push(turn("user", &asked));
    turns.push(turn("assistant", &answered));
}

fn turn(role: &str, content: &str) -> Turn {
    Turn {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

fn with_article(word: &str) -> String {
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {word}")
}

fn without_article(words: &str) -> &str {
    words
        .strip_prefix("a ")
        .or_else(|| words.strip_prefix("an "))
        .or_else(|| words.strip_prefix("the "))
        .unwrap_or(words)
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(characters).collect()
    })
}

fn sentence(text: &str) -> String {
    capital(text)
}

fn lower_first(text: &str) -> String {
    // "I" and names keep their capital letter.
    if text.starts_with("I ") {
        return text.to_owned();
    }
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(characters).collect()
    })
}
