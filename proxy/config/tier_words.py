"""The words and the marks of code that come with this proxy, by which `policy.complexity` tells a hard question from
an easy one."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from proxy.linear import ExpressionSet

_START: Final = r"(?:^|[^\pL\pN_])"
_END: Final = r"(?:$|[^\pL\pN_])"

# Each is one kind: the same demand in English, German, French, Spanish, Portuguese, Italian, Dutch, Polish, Russian,
# and, as their scripts set no spaces, Chinese, Japanese and Korean. Stems stand without an end.
_STEMS: Final[tuple[tuple[str, str], ...]] = (
    ("anal[iy]|anál|analís|анализ|проанализ|interpret|интерпрет", "分析|解析|분석"),
    ("compar|vergleich|gegenüberstell|confront|vergelijk|porówn|сравн", "比较|比較|对比|비교"),
    (
        "evaluat|évalu|evalua|avalia|valutare|valutazion|bewert|beurteil|assess|critiqu|kritisier|ocen|оцен",
        "评估|評価|평가",
    ),
    ("beweis|prouve|démontr|demuestr|demonstr|dimostr|bewijs|udowodn|докаж|доказ", "证明|証明|증명"),
    ("deriv|deduc|déduis|herleit|ableit|schlussfolger|wywnioskuj|вывед|выведи", "推导|推論|추론"),
    ("strateg|stratég|стратег|roadmap|trade-?off|abwäg|arbitrage entre|compromis", "战略|策略|戦略|전략"),
    ("optimi[sz]|optimier|optymaliz|оптимиз|refactor|refaktor|refactoris|рефактор", "优化|最適化|최적화"),
    ("debug|troubleshoot|root cause|fehlersuche|débog|depur|отлад|исправь ошибк", "调试|デバッグ|디버그"),
    ("architect|architekt|architett|arquitet|архитектур|design (?:a|an|the)|entwirf|conçois|diseñ", "设计|設計|설계"),
    ("implement|implementier|implémente|algorithm|algorithmus|algoritm|algorytm|алгоритм", "实现|実装|算法|구현"),
    ("hypothe|hypothè|hipótes|ipotes|hipotez|гипотез|implication|consequence|auswirkung", "假设|仮説|가설"),
    ("calculat|berechn|calcul|oblicz|вычисл|рассчит|estimat|schätz|simulat|integral", "计算|計算|계산"),
    (
        "explain in detail|in depth|ausführlich|en détail|en detalle|em detalhe|подробно|szczegół",
        "详细|詳しく|자세히",
    ),
)
_WORDS: Final[tuple[tuple[str, str], ...]] = (
    ("why|warum|wieso|weshalb|pourquoi|por ?qu[eé]|perch[eé]|waarom|dlaczego|почему|зачем", "为什么|為什麼|なぜ|왜"),
    (
        "step[ -]by[ -]step|schritt für schritt|étape par étape|paso a paso|passo a passo|stap voor stap|"
        "krok po kroku|шаг за шагом|пошагово|think (?:hard|carefully)|reason(?:ing)?",
        "一步一步|逐步|段階的|단계별",
    ),
    (
        "goals?|ziele?|objectifs?|objetivos?|obiettiv[oi]|doel|cele|цел[ьи]|"
        "plan(?:s|ning|ned)?|planen|planifie|planifica|planeja|pianifica|zaplanuj|план|спланируй",
        "目标|目標|计划|計画|목표|계획",
    ),
    (
        "prove[dns]?|proving|proofs?|infer(?:s|red|ring|ences?)?|review (?:this|my|our|the)|revise (?:mon|ce)",
        "推理|推断",
    ),
    (
        "patterns?|muster|motifs?|patrón|patrones|padrão|schema di|patroon|wzorzec|wzorce|закономерност[ьи]",
        "模式|규칙",
    ),
    ("pros and cons|vor- und nachteile|pour et contre|ventajas y desventajas|плюсы и минусы", "优缺点|장단점"),
)
_THOUGHT: Final = (
    *(f"{_START}(?:{stems})|{joined}" for stems, joined in _STEMS),
    *(f"{_START}(?:{words}){_END}|{joined}" for words, joined in _WORDS),
)
_CODE: Final = (
    r"```|~~~",
    r"(?m)^\s*(?:def|class|func|fn|pub fn|async def|interface|struct|impl|package|namespace)\s+\w+",
    r"(?m)^\s*(?:import|from|using|require|#include|use)\s*[\w<\"'({.]+.*(?:;|import|>|\.h|as \w+)",
    r"\b(?:const|let|var)\s+\w+\s*=|\bfunction\s*\w*\s*\(|=>\s*[{(]|\)\s*\{|\}\s*else\s*\{",
    r"(?-i:\bSELECT\b.{1,200}\bFROM\b)|\bselect\s+(?:\*|\w+\.\w+|\w+\s*,).{0,200}\bfrom\s+\w|\b(?:insert\s+into|create\s+table)\b",
    r"</\w+>|<\w+(?:\s+\w+=\"[^\"]*\")+\s*/?>",
    r"Traceback \(most recent|\w+(?:Error|Exception):|\bat \w[\w.$]*\([\w.]+:\d+\)|(?m)^\s*File \".+\", line \d+",
    r"\w+\(.{0,80}\);|\w+\[\w+\]\s*=|[!=]==?\s*\w+\s*(?:&&|\|\|)|;[ \t]*\n[^\n]*;[ \t]*(?:\n|$)",
)
KINDS: Final = len(_THOUGHT)
"""Of words that ask for thought: the first of ``known_words(True)``; what stands behind them are marks of code."""


@lru_cache(maxsize=2)
def known_words(thought: bool) -> ExpressionSet:
    """The marks of code, behind the kinds of words where those are wanted. Compiled once, when a catalog first needs
    them: that takes a twentieth of a second."""
    return ExpressionSet((*_THOUGHT, *_CODE) if thought else _CODE, ignore_case=True)
