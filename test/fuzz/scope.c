/*
 * scope.c
 *		Fuzzes grant_scope() and grant_scopes() of src/base/grant.c: lines, the
 *		first of them the scope or the list that is wanted, the others those
 *		that the key has.
 */
#include "server.h"

#include "catalog/pg_type_d.h"
#include "utils/array.h"

#include "compat.h"
#include "base/grant.h"

#define SCOPES_MAX 64

static Datum elements[SCOPES_MAX];
static bool nulls[SCOPES_MAX];
static int	count;

/* The array is what the fuzzer has taken apart. */
void
deconstruct_array(ArrayType *array, Oid elmtype, int elmlen, bool elmbyval,
				  char elmalign, Datum **elemsp, bool **nullsp, int *nelemsp)
{
	*elemsp = elements;
	*nullsp = nulls;
	*nelemsp = count;
}

/* A text without a byte to spare, with a short header as those in a row. */
static text *
make_text(const uint8 *data, size_t len)
{
	bool		is_short = len + VARHDRSZ_SHORT <= VARATT_SHORT_MAX && len % 2 == 0;
	text	   *result = malloc(len + (is_short ? VARHDRSZ_SHORT : VARHDRSZ));

	if (is_short)
		SET_VARSIZE_SHORT(result, len + VARHDRSZ_SHORT);
	else
		SET_VARSIZE(result, len + VARHDRSZ);
	memcpy(VARDATA_ANY(result), data, len);
	return result;
}

/* The rule of the reference, said anew. */
static bool
grants(const char *have, size_t have_len, const char *want, size_t want_len)
{
	if (have_len == want_len && memcmp(have, want, want_len) == 0)
		return true;
	if (have_len == 1)
		return have[0] == '*';
	for (size_t i = 0; i + 1 < want_len; i++)
		if (want[i] == ':' && have_len == i + 2 && have[i + 1] == '*' &&
			memcmp(have, want, i + 1) == 0)
			return true;
	return false;
}

/* Whether the key has one scope that grants the wanted one. */
static bool
has(const char *want, size_t want_len)
{
	for (int i = 0; i < count; i++)
		if (!nulls[i] && want_len > 0 &&
			grants(VARDATA_ANY(elements[i]), VARSIZE_ANY_EXHDR(elements[i]),
				   want, want_len))
			return true;
	return false;
}

/* The rule of lists, from the end: 1 granted, 0 not, -1 no list. */
static int
has_all(const char *list, size_t len)
{
	bool		all = true;
	bool		any = false;
	size_t		end = len;

	for (size_t i = len + 1; i-- > 0;)
	{
		if (i > 0 && list[i - 1] != ' ' && list[i - 1] != '|')
			continue;
		if (i == end)
			return -1;
		any |= has(list + i, end - i);
		if (i == 0 || list[i - 1] == ' ')
		{
			all &= any;
			any = false;
		}
		end = i - 1;
	}
	return all;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	const uint8 *end = data + size;
	text	   *wanted = NULL;
	int			expected;

	count = 0;
	while (data < end && count < SCOPES_MAX)
	{
		const uint8 *line_end = memchr(data, '\n', end - data);
		size_t		len = (line_end ? line_end : end) - data;
		text	   *scope = make_text(data, len);

		if (wanted == NULL)
			wanted = scope;
		else
		{
			nulls[count] = len == 1 && *data == 0;
			elements[count++] = PointerGetDatum(scope);
		}
		data += len + 1;
	}
	if (wanted == NULL)
		return 0;
	HOLDS(grant_scope((ArrayType *) elements, wanted) ==
		  has(VARDATA_ANY(wanted), VARSIZE_ANY_EXHDR(wanted)));
	expected = has_all(VARDATA_ANY(wanted), VARSIZE_ANY_EXHDR(wanted));
	HOLDS(grant_is_list(wanted) == (expected >= 0));
	if (expected >= 0)
		HOLDS(grant_scopes((ArrayType *) elements, wanted) == (expected == 1));
	free(wanted);
	for (int i = 0; i < count; i++)
		free(DatumGetPointer(elements[i]));
	return 0;
}
