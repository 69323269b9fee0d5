# ruff: noqa: RUF001 (letters of other scripts are what this file is about)
"""The same few sentences in nine languages, and a little code: what tokenizers are compared on where no text is given.

As the languages say the same, their numbers of tokens may be set against each other: how much more one pays for a
language than for English (Petrov et al. 2023, "Language Model Tokenizers Introduce Unfairness Between Languages").
"""

LANGUAGE_SAMPLES: dict[str, str] = {
    "English": (
        "The night train left the harbour at ten past six, and nobody on the platform knew where the old woman with "
        "the red suitcase wanted to go. She smiled, bought two apples and asked the conductor whether it would rain "
        "tomorrow. “It always rains in the mountains,” he said. “Take 3 umbrellas, and 12.50 in coins for the tea.”\n"
    ),
    "German": (
        "Der Nachtzug verließ den Hafen um zehn nach sechs, und niemand auf dem Bahnsteig wusste, wohin die alte Frau "
        "mit dem roten Koffer wollte. Sie lächelte, kaufte zwei Äpfel und fragte den Schaffner, ob es morgen regnen "
        "werde. „In den Bergen regnet es immer“, sagte er. „Nehmen Sie 3 Regenschirme mit, und 12,50 in Münzen für "
        "den Tee.“\n"
    ),
    "Spanish": (
        "El tren nocturno salió del puerto a las seis y diez, y nadie en el andén sabía adónde quería ir la anciana de "
        "la maleta roja. Ella sonrió, compró dos manzanas y le preguntó al revisor si llovería mañana. «En las "
        "montañas siempre llueve», dijo él. «Lleve 3 paraguas, y 12,50 en monedas para el té.»\n"
    ),
    "Russian": (
        "Ночной поезд отошёл от гавани в десять минут седьмого, и никто на платформе не знал, куда хочет ехать старая "
        "женщина с красным чемоданом. Она улыбнулась, купила два яблока и спросила проводника, будет ли завтра дождь. "
        "«В горах всегда идёт дождь, — сказал он. — Возьмите 3 зонта и 12,50 мелочью на чай».\n"
    ),
    "Arabic": (
        "غادر القطار الليلي الميناء في السادسة وعشر دقائق، ولم يكن أحد على الرصيف يعرف إلى أين تريد أن تذهب المرأة "
        "العجوز صاحبة الحقيبة الحمراء. ابتسمت واشترت تفاحتين وسألت المفتش إن كان المطر سيهطل غدا. قال لها: «المطر يهطل "
        "دائما في الجبال. خذي 3 مظلات، و12.50 من النقود المعدنية ثمنا للشاي».\n"
    ),
    "Hindi": (
        "रात की रेलगाड़ी छह बजकर दस मिनट पर बंदरगाह से निकली, और प्लेटफ़ॉर्म पर कोई नहीं जानता था कि लाल सूटकेस वाली बूढ़ी औरत कहाँ "
        "जाना चाहती है। वह मुस्कुराई, उसने दो सेब ख़रीदे और टिकट बाबू से पूछा कि क्या कल बारिश होगी। “पहाड़ों में तो हमेशा "
        "बारिश होती है,” उसने कहा। “3 छाते ले जाइए, और चाय के लिए 12.50 के सिक्के।”\n"
    ),
    "Chinese": (
        "夜班火车六点十分离开了港口,站台上没有人知道那位提着红色行李箱的老太太要去哪里。她笑了笑,买了两个苹果,"
        "又问列车员明天会不会下雨。“山里总是下雨,”他说,“带上3把伞,再带12.50元硬币买茶喝。”\n"
    ),
    "Japanese": (
        "夜行列車は六時十分に港を出たが、赤いスーツケースを持ったおばあさんがどこへ行きたいのか、ホームにいる誰も知らなかった。"
        "彼女はほほえんで、りんごを二つ買い、明日は雨が降るかと車掌に尋ねた。「山ではいつも雨ですよ」と彼は言った。"
        "「傘を3本と、お茶代に12.50の小銭をお持ちなさい。」\n"
    ),
    "Korean": (
        "밤 기차는 여섯 시 십 분에 항구를 떠났고, 빨간 여행 가방을 든 할머니가 어디로 가려는지 승강장에서는 아무도 "
        "몰랐다. 할머니는 웃으며 사과 두 개를 사고, 내일 비가 올지 차장에게 물었다. “산에는 늘 비가 옵니다.” 그가 "
        "말했다. “우산 3개와 찻값으로 동전 12.50을 챙기세요.”\n"
    ),
}

CODE_SAMPLES: dict[str, str] = {
    "Python": '''\
from dataclasses import dataclass


@dataclass(frozen=True)
class Train:
    """A train, and when it leaves."""

    harbour: str
    minutes_past_six: int = 10

    def is_late(self, now: int, *, patience: float = 2.5) -> bool:
        return now - self.minutes_past_six > patience


trains = [Train("north", n) for n in range(0, 60, 15) if n % 2 == 0]
for train in sorted(trains, key=lambda train: train.minutes_past_six):
    print(f"{train.harbour:<12} {train.minutes_past_six:02d}", train.is_late(0x1F))
''',
    "JSON": """\
{
  "train": {"name": "night", "leaves": "18:10", "platform": 3, "late": false},
  "passengers": [
    {"id": 70412, "luggage": ["red suitcase"], "apples": 2, "ticket": null},
    {"id": 70413, "luggage": [], "apples": 0, "ticket": "A-12.50"}
  ],
  "weather": {"mountains": {"rain": 0.97, "wind_m_s": 11.4}, "harbour": {"rain": 0.2}}
}
""",
}

SAMPLES: dict[str, str] = LANGUAGE_SAMPLES | CODE_SAMPLES
