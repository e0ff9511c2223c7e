"""What the tests of the report share."""

#: Texts that would break a page that does not escape them.
HOSTILE = [
    "<script>document.title = 'broken'</script> the cat",
    "<img src=http://example.invalid/x onerror=alert(1)> a dog & a bird",
    "{{ 7 * 7 }} {% raw %} ${cost}_{x} \\frac \x07 red",
    "\u202efish\u202c and قطة نائمة",
    "a" * 900,
]
TEACHER = "first.b_1"
