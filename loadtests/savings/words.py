"""What the people of the trace say."""

from __future__ import annotations

from typing import Final

SMALL_TALK: Final = (
    *("hello", "Hello!", "hi", "Hi there", "hey", "HELLO", "good morning", "Good evening!", "Hallo", "Guten Morgen"),
    *("bonjour", "Bonjour !", "salut", "hola", "¡Hola!", "buenos días", "ciao", "buongiorno", "olá", "bom dia"),
    *("thanks", "Thanks!", "thank you", "Thank you so much!", "thx", "Danke", "Vielen Dank!", "merci", "Merci beaucoup"),
    *("gracias", "grazie", "obrigado", "dank je", "ok", "OK", "okay", "Ok!", "done", "Done.", "great", "perfect", "got it"),
    *("bye", "Bye!", "goodbye", "see you", "Tschüss", "au revoir", "adiós", "good night", "yes", "no"),
)
"""Some of these no starter set knows; that is as it is in life."""

QUESTIONS: Final = (
    "What are your opening hours?",
    "How do I reset my password?",
    "Where can I download my invoice?",
    "Do you ship to Switzerland?",
    "What is your return policy?",
    "How long does delivery take?",
    "Can I pay by bank transfer?",
    "How do I cancel my subscription?",
    "Which sizes do the hiking boots come in?",
    "Is there a student discount?",
    "How do I change my delivery address?",
    "Do you have gift cards?",
    "What does the warranty cover?",
    "How do I contact support by phone?",
    "Are your packages made of recycled paper?",
    "Can I order without an account?",
    "How do I unsubscribe from the newsletter?",
    "Where is my nearest store?",
    "Do you repair used bicycles?",
    "What is the minimum order value?",
)
"""Asked again and again, word by word; a few of them by most."""

THINGS: Final = (
    *("kettle", "raincoat", "tent", "headlamp", "backpack", "bicycle pump", "water bottle", "sleeping bag"),
    *("compass", "rope", "stove", "towel", "cap", "pair of gloves", "saddle", "lock", "tyre", "map", "whistle", "mug"),
)
COLOURS: Final = ("red", "blue", "green", "black", "white", "yellow", "grey", "orange")
CITIES: Final = ("Bern", "Lyon", "Porto", "Ghent", "Turin", "Graz", "Malmö", "Cork", "Brno", "Vigo", "Split", "Riga")
SIMPLE: Final = (
    "Is the {colour} {thing} with number {number} in stock in {city}?",
    "Translate 'the {colour} {thing} number {number}' into French.",
    "How much is shipping for {number} pieces of the {thing} to {city}?",
    "Write one sentence for a gift card that comes with a {colour} {thing}, order {number}.",
    "What does article {number}, the {colour} {thing}, weigh?",
    "Spell the word {thing} and say how many letters it has, for case {number}.",
    "Rewrite politely: send me the {thing} to {city}, order {number}.",
    "Give me a short name for a {colour} {thing} of series {number}.",
)
COMPLEX: Final = (
    "Analyse why returns of the {colour} {thing} rose by {number} % in {city}, compare three explanations and plan a test"
    " that tells them apart. Think step by step and say what would prove you wrong.",
    "Our goal is to halve the delivery time to {city}. Find the pattern in these delays: {delays}. Why do they cluster,"
    " what are the trade-offs of a second depot, and which plan would you defend?",
    "Debug this and explain the reasoning:\n```python\ndef price(order):\n    total = 0\n    for item in order:\n"
    "        total = item.price * item.count\n    return total * (1 - {number} / 100)\n```\nWhy is the total of {city} wrong?"
    " Prove that your version is right for an empty order as well.",
    "Design the data model for a shop that rents out each {thing} by the hour in {city}: entities, constraints, an index"
    " for each query. Compare with a design without bookings and argue for one. Case {number}.",
)
FOLLOW_UPS: Final = (
    "And the {colour} one, number {number}?",
    "What about delivery to {city} for number {number}?",
    "Can I get {number} of them, and a {thing} as well?",
    "Does the {thing} go with it, in {colour}, number {number}?",
    "Please put the {colour} {thing} aside for me, booking {number}.",
    "Which of the two would you take for a week near {city}, {number} km in all?",
)
REPLIES: Final = (
    "Yes, number {number} is there in {colour}. It ships to {city} within three days, and you can send it back for a month."
    " Shall I add a {thing} to the order, or would you rather see others of the same kind first?",
    "The {colour} {thing} costs the same as the other colours. For {number} pieces there is a small discount, which the"
    " checkout takes off by itself; to {city} the parcel goes by rail and arrives in the morning.",
    "I have noted booking {number}. The shop in {city} keeps the {thing} for you until Saturday evening; bring the number"
    " with you, and something that shows your name. Is there anything else that I can look up for you?",
)
SYSTEM: Final = (
    "You are the assistant of Pine & Pebble, a shop for people who like to be outside.   Be short, friendly and exact."
    "   Never promise a price that is not in the list.\n\n\nIf you do not know, say so and name the phone line.\n\n"
    "<example>\nCustomer: Do you have tents?\nAssistant: Yes, four kinds, from one person to six. For how many people and"
    " which season do you need it?\n</example>\n\n\nAnswer in the language of the customer."
)
TOOL: Final = {
    "type": "function",
    "function": {
        "name": "look_up_stock",
        "description": "How many pieces of an article there are in a city's shop",
        "parameters": {
            "type": "object",
            "properties": {"article": {"type": "integer"}, "city": {"type": "string"}},
            "required": ["article", "city"],
        },
    },
}
