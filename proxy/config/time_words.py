"""Words that tie a question to the moment it is asked, in several languages: a kept answer would be wrong."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from proxy.linear import ExpressionSet

_START: Final = r"(?:^|[^\pL\pN_])"
_END: Final = r"(?:$|[^\pL\pN_])"
_MOST_CHARS: Final = 1_500
_UNSPACED: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Scripts of Japanese, Chinese and Korean."""

# English, German, French, Spanish, Portuguese, Italian, Dutch, Polish, Swedish, Turkish, Russian, Ukrainian, Arabic,
# Hindi: whole words.
_SPACED: Final = (
    r"now|right now|today|tonight|tomorrow|yesterday|currently?|latest|newest|recent(?:ly)?|up[- ]to[- ]date|news|"
    r"live|this (?:week|month|year|morning|evening|afternoon)|(?:last|next) (?:week|month|year|night)|just now|"
    r"what time|time is it|what day|what date|date today|weather|forecast|temperature outside|price of|prices?|"
    r"stocks?|share price|exchange rate|scores?|traffic|breaking|headlines?|as of|so far",
    r"jetzt|gerade|heute|heutige[rsn]?|gestern|morgen|momentan|derzeit|aktuell(?:e[rsnm]?)?|neueste[rsn]?|neulich|"
    r"nachrichten|diese[rsn]? (?:woche|monat|jahr)|wie spät|wie viel uhr|uhrzeit|welcher tag|datum|wetter|"
    r"wettervorhersage|preise?|kurs|aktienkurs|wechselkurs|börse|spielstand|verkehr",
    r"maintenant|aujourd['’]hui|hier|demain|actuel(?:le|s|les|lement)?|en ce moment|derni(?:er|ère)s?|récents?|"
    r"récemment|cette (?:semaine|année)|ce (?:mois|soir|matin)|quelle heure|quel jour|météo|temps qu['’]il fait|prix|"
    r"cours|bourse|actualités?|nouvelles",
    r"ahora|hoy|ayer|mañana|actual(?:es|mente)?|último|última|últimos|últimas|reciente(?:s|mente)?|"
    r"esta (?:semana|noche|tarde)|este (?:mes|año)|qué hora|qué día|tiempo hace|clima|pronóstico|precios?|"
    r"cotización|bolsa|noticias",
    r"agora|hoje|ontem|amanhã|atual(?:mente)?|atuais|mais recentes?|recentemente|esta semana|este (?:mês|ano)|"
    r"que horas|que dia|previsão do tempo|preços?|cotação|notícias",
    r"adesso|oggi|ieri|domani|attual(?:e|i|mente)|più recent[ei]|recentemente|questa settimana|quest['’]anno|che ore|"
    r"che giorno|meteo|previsioni|prezz[oi]|quotazion[ei]|borsa|notizie",
    r"nu|vandaag|gisteren|momenteel|actuele?|laatste|recente?|deze (?:week|maand)|dit jaar|hoe laat|welke dag|"
    r"weer|weersvoorspelling|prijs|prijzen|koers|nieuws",
    r"teraz|dzisiaj|dziś|wczoraj|jutro|obecn[aeiy]e?|aktualn[aeiy]e?|najnowsz[aey]|ostatni[aeo]?|"
    r"w tym (?:tygodniu|miesiącu|roku)|która godzina|jaki dzień|pogod[aęy]|prognoza|cen[ay]|kurs|wiadomości",
    r"idag|i dag|igår|imorgon|just nu|senaste|aktuell(?:a|t)?|den här veckan|hur mycket är klockan|väder|vädret|"
    r"pris(?:et)?|nyheter",
    r"şimdi|şu an|bugün|dün|yarın|güncel|en son|bu (?:hafta|ay|yıl)|saat kaç|hava durumu|fiyat[ıi]?|kuru|haberler",
    r"сейчас|сегодня|вчера|завтра|теперь|текущ(?:ий|ая|ее|ие|его)|последни[ейхм]|свежи[ейх]|новости|на этой неделе|"
    r"который час|сколько времени|какой день|погод[аеыу]|прогноз|цен[аыу]|курс|"
    r"зараз|сьогодні|вчора|поточн(?:ий|а|е|і)|котра година|погода|ціна|новини",
    r"الآن|اليوم|أمس|غدا|غدًا|حاليا|حاليًا|آخر|أحدث|الطقس|سعر|أسعار|أخبار|كم الساعة",
    r"अभी|आज|कल|वर्तमान|ताज़ा|ताजा|नवीनतम|मौसम|कीमत|भाव|समाचार|कितने बजे",
)
# Chinese, Japanese, Korean: nothing sets words apart.
_JOINED: Final = (
    r"现在|現在|今天|今日|昨天|明天|目前|当前|當前|最新|最近|本周|这周|本月|今年|几点|天气|天氣|价格|價格|股价|汇率|新闻|新聞|"
    r"昨日|明日|ただいま|何時|天気|価格|株価|為替|ニュース|今週|今月|"
    r"지금|오늘|어제|내일|현재|최신|최근|이번 (?:주|달)|올해|몇 시|날씨|가격|주가|환율|뉴스"
)


@lru_cache(maxsize=4)  # a tenth of a second, and the same with every reload
def make_timely(words: tuple[str, ...], *, built_in: bool) -> ExpressionSet | None:
    """Finds the operator's words (see `make_words`) and those of above. ``None`` for none at all. Raises
    ``PatternError`` where together they are too large."""
    patterns = _spell(words)
    if built_in:
        patterns += [*(f"{_START}(?:{each}){_END}" for each in _SPACED), _JOINED]
    return ExpressionSet(patterns, ignore_case=True) if patterns else None


def make_words(words: Sequence[str]) -> ExpressionSet | None:
    """Finds each of the words or phrases, whatever its case: where it stands alone, or anywhere if it is of a script
    that sets no spaces. Raises ``PatternError``."""
    return ExpressionSet(_spell(words), ignore_case=True) if words else None


def _spell(words: Sequence[str]) -> list[str]:
    """In patterns that are not too long."""
    spaced = [word for word in words if not _UNSPACED.search(word)]
    joined = [word for word in words if _UNSPACED.search(word)]
    patterns = [f"{_START}(?:{part}){_END}" for part in _join(spaced)]
    return patterns + list(_join(joined))


def _join(words: Sequence[str]) -> Iterator[str]:
    part = ""
    for word in words:
        said = re.escape(normalise(word)).replace(r"\ ", r"\s+")
        if part and len(part) + len(said) > _MOST_CHARS:
            yield part
            part = ""
        part += f"|{said}" if part else said
    if part:
        yield part


def normalise(text: str) -> str:
    """As words are compared: one spelling for each accented letter."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
