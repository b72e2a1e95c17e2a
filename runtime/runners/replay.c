/* Replays a package's golden vectors through the C API of ONNX Runtime.

     replay --library libonnxruntime.so PACKAGE [--variant NAME]...

   docs/decisions/runners.md says what it reads and prints. No header is needed: OrtApi is a table of functions whose
   places never change, each release only adding at the end, so that the few that are called here are named by their
   places. The library is opened when the program runs, so one program serves every release from 1.19 on.

   It runs for seconds and frees nothing but sessions and what they made. */

#include <dirent.h>
#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST = 512 }; /* tensors of one case, dimensions, variants asked for */

static void fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  vfprintf(stderr, format, values);
  va_end(values);
  fputc('\n', stderr);
  exit(2);
}

static void *room(size_t size) {
  void *found = calloc(size ? size : 1, 1);
  if (!found) fail("there is not enough memory");
  return found;
}

static char *text(const char *format, ...) {
  va_list values;
  va_start(values, format);
  int size = vsnprintf(NULL, 0, format, values);
  va_end(values);
  char *found = room((size_t)size + 1);
  va_start(values, format);
  vsnprintf(found, (size_t)size + 1, format, values);
  va_end(values);
  return found;
}

typedef struct { uint8_t *bytes; size_t size; } Blob;

static Blob whole(const char *path) {
  FILE *file = fopen(path, "rb");
  struct stat about;
  if (!file || fstat(fileno(file), &about)) fail("%s cannot be read", path);
  Blob found = {room((size_t)about.st_size + 1), (size_t)about.st_size};
  if (fread(found.bytes, 1, found.size, file) != found.size) fail("%s cannot be read", path);
  fclose(file);
  return found;
}

static int is_there(const char *path) {
  struct stat about;
  return !stat(path, &about);
}

/* ------------------------------------------------------------------ JSON: as much as a manifest holds */

typedef struct Json Json;
struct Json { char kind; char *string; double number; size_t count; char **keys; Json **items; }; /* kind: { [ " 0 n */

static const char *at, *name_of_file;

static void skip(void) { while (*at && strchr(" \t\r\n", *at)) at++; }

static char *read_string(void) {
  const char *end = at + 1;
  while (*end && *end != '"') end += *end == '\\' && end[1] ? 2 : 1;
  char *found = room((size_t)(end - at) + 1), *to = found;
  for (at++; *at && *at != '"'; at++) {
    if (*at != '\\') { *to++ = *at; continue; }
    at++;
    if (*at == 'u') { /* names of tensors are plain; another character is kept apart as a question mark */
      unsigned code = 0;
      sscanf(at + 1, "%4x", &code);
      *to++ = code && code < 128 ? (char)code : '?';
      at += 4;
    } else {
      const char *from = "nrtbf", *into = "\n\r\t\b\f", *place = strchr(from, *at);
      *to++ = place && *at ? into[place - from] : *at;
    }
  }
  if (*at != '"') fail("%s is not JSON", name_of_file);
  at++;
  return found;
}

static Json *read_value(int depth) {
  Json *found = room(sizeof *found);
  skip();
  if (depth > 64) fail("%s nests too deep", name_of_file);
  if (*at == '"') {
    found->kind = '"';
    found->string = read_string();
  } else if (*at == '{' || *at == '[') {
    char end = *at == '{' ? '}' : ']';
    size_t size = 0;
    found->kind = *at++;
    for (skip(); *at != end; skip()) {
      if (found->count == size) {
        size = size ? 2 * size : 8;
        found->keys = realloc(found->keys, size * sizeof *found->keys);
        found->items = realloc(found->items, size * sizeof *found->items);
        if (!found->keys || !found->items) fail("there is not enough memory");
      }
      if (found->kind == '{') {
        if (*at != '"') fail("%s is not JSON", name_of_file);
        found->keys[found->count] = read_string();
        skip();
        if (*at++ != ':') fail("%s is not JSON", name_of_file);
      }
      found->items[found->count++] = read_value(depth + 1);
      skip();
      if (*at == ',') at++;
      else if (*at != end) fail("%s is not JSON", name_of_file);
    }
    at++;
  } else if (!strncmp(at, "true", 4) || !strncmp(at, "null", 4)) {
    found->kind = 'n';
    at += 4;
  } else if (!strncmp(at, "false", 5)) {
    found->kind = 'n';
    at += 5;
  } else {
    char *end;
    found->kind = '0';
    found->number = strtod(at, &end);
    if (end == at) fail("%s is not JSON", name_of_file);
    at = end;
  }
  return found;
}

static Json *find(const Json *object, const char *key) {
  if (object && object->kind == '{')
    for (size_t i = 0; i < object->count; i++)
      if (!strcmp(object->keys[i], key)) return object->items[i];
  return NULL;
}

static Json *need(const Json *object, const char *key) {
  Json *found = find(object, key);
  if (!found) fail("%s lacks `%s`", name_of_file, key);
  return found;
}

static void quoted(const char *string) {
  putchar('"');
  for (; *string; string++) {
    if (*string == '"' || *string == '\\') printf("\\%c", *string);
    else if ((unsigned char)*string < 32) putchar(' ');
    else putchar(*string);
  }
  putchar('"');
}

/* ------------------------------------------------------------------------------ TensorProto, ONNX's file format */

typedef struct { char *name; int type; size_t rank, count; int64_t shape[16]; uint8_t *raw; size_t size; } Tensor;

static const size_t WIDTH[] = {[1] = 4, [2] = 1, [3] = 1, [6] = 4, [7] = 8, [9] = 1, [10] = 2, [11] = 8};

static uint64_t varint(const uint8_t **from, const uint8_t *end, const char *path) {
  uint64_t value = 0;
  for (int shift = 0; *from < end && shift < 64; shift += 7) {
    uint8_t byte = *(*from)++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return value;
  }
  fail("%s is cut short", path);
  return 0;
}

static Tensor read_tensor(const char *path) {
  Blob blob = whole(path);
  const uint8_t *from = blob.bytes, *end = from + blob.size;
  Tensor found = {.name = "", .count = 1};
  while (from < end) {
    uint64_t key = varint(&from, end, path), value = 0;
    size_t size = 0;
    if ((key & 7) == 0) value = varint(&from, end, path);
    else size = (key & 7) == 2 ? varint(&from, end, path) : (key & 7) == 1 ? 8 : 4;
    if (size > (size_t)(end - from)) fail("%s is cut short", path);
    const uint8_t *content = from;
    from += size;
    switch (key >> 3) {
      case 1:
        if ((key & 7) == 0 && found.rank < 16) found.shape[found.rank++] = (int64_t)value;
        while ((key & 7) == 2 && content < from && found.rank < 16)
          found.shape[found.rank++] = (int64_t)varint(&content, from, path);
        break;
      case 2: found.type = (int)value; break;
      case 8: found.name = text("%.*s", (int)size, (const char *)content); break;
      case 9: found.raw = (uint8_t *)content; found.size = size; break;
    }
  }
  for (size_t i = 0; i < found.rank; i++) found.count *= (size_t)found.shape[i];
  size_t width = found.type > 0 && found.type < 12 ? WIDTH[found.type] : 0;
  if (!width || found.count * width != found.size) fail("%s is not a tensor with raw data of a known type", path);
  if (!found.raw) found.raw = room(1);
  return found;
}

static double half(uint16_t bits) {
  int exponent = bits >> 10 & 31;
  double part = bits & 1023, value;
  if (exponent == 31) value = part ? NAN : INFINITY;
  else value = exponent ? ldexp(1024 + part, exponent - 25) : ldexp(part, -24);
  return bits >> 15 ? -value : value;
}

static double number(const Tensor *tensor, size_t place) {
  const uint8_t *from = tensor->raw + place * WIDTH[tensor->type];
  float f; double d; int32_t i; int64_t l; uint16_t h;
  switch (tensor->type) {
    case 1: memcpy(&f, from, 4); return f;
    case 2: case 9: return *from;
    case 3: return (int8_t)*from;
    case 6: memcpy(&i, from, 4); return i;
    case 7: memcpy(&l, from, 8); return (double)l;
    case 10: memcpy(&h, from, 2); return half(h);
    default: memcpy(&d, from, 8); return d;
  }
}

static size_t read_folder(const char *folder, const char *kind, Tensor *tensors) {
  size_t count = 0;
  DIR *files = opendir(folder);
  if (!files) fail("%s cannot be read", folder);
  for (struct dirent *entry; (entry = readdir(files));)
    if (!strncmp(entry->d_name, kind, strlen(kind)) && strstr(entry->d_name, ".pb") && count < MOST)
      tensors[count++] = read_tensor(text("%s/%s", folder, entry->d_name));
  closedir(files);
  return count;
}

static const Tensor *named(const Tensor *tensors, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++)
    if (!strcmp(tensors[i].name, name)) return tensors + i;
  return NULL;
}

/* ------------------------------------------------------------------- the C API: functions by their places in OrtApi */

typedef struct Status Status; typedef struct Env Env; typedef struct Options Options; typedef struct Session Session;
typedef struct Value Value; typedef struct Memory Memory; typedef struct Shape Shape; typedef struct Allocator Allocator;
typedef struct { const void *const *(*get_api)(uint32_t); const char *(*version)(void); } ApiBase;

enum {
  GET_ERROR_MESSAGE = 2, CREATE_ENV = 3, CREATE_SESSION = 7, CREATE_SESSION_FROM_ARRAY = 8, RUN = 9,
  CREATE_SESSION_OPTIONS = 10, SESSION_GET_OUTPUT_COUNT = 31, SESSION_GET_OUTPUT_NAME = 37,
  CREATE_TENSOR_WITH_DATA = 49, GET_TENSOR_DATA = 51, GET_TENSOR_ELEMENT_TYPE = 60, GET_DIMENSIONS_COUNT = 61,
  GET_DIMENSIONS = 62, GET_TENSOR_TYPE_AND_SHAPE = 65, CREATE_CPU_MEMORY_INFO = 69, GET_ALLOCATOR = 78,
  RELEASE_SESSION = 95, RELEASE_VALUE = 96, ADD_SESSION_CONFIG_ENTRY = 130,
};

static const void *const *api;
static Env *env;
static Memory *memory;
static Allocator *allocator;
static const char *version;

#define CALL(place, ...) ((Status *(*)(__VA_ARGS__))api[place])

static const char *trouble(Status *status) {
  return status ? ((const char *(*)(const Status *))api[GET_ERROR_MESSAGE])(status) : NULL;
}

static void must(Status *status) {
  if (status) fail("ONNX Runtime: %s", trouble(status));
}

static void open_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail("%s cannot be opened: %s", path, dlerror());
  const ApiBase *(*base)(void) = (const ApiBase *(*)(void))dlsym(library, "OrtGetApiBase");
  if (!base) fail("%s is not ONNX Runtime", path);
  version = base()->version();
  api = base()->get_api(19);
  if (!api) fail("ONNX Runtime %s is too old: 1.19 or later", version);
  must(CALL(CREATE_ENV, int, const char *, Env **)(4, "isoformer", &env));
  must(CALL(CREATE_CPU_MEMORY_INFO, int, int, Memory **)(1, 0, &memory));
  must(CALL(GET_ALLOCATOR, Allocator **)(&allocator));
}

/* A file that names the weights of the package's own folder is opened from memory, with the folder told. */
static const char *open_session(const char *package, const char *path, Session **session) {
  Options *options;
  must(CALL(CREATE_SESSION_OPTIONS, Options **)(&options));
  const char *slash = strrchr(path, '/');
  char *beside = slash ? text("%s/%.*s/model.onnx_data", package, (int)(slash - path), path) : NULL;
  char *file = text("%s/%s", package, path);
  if (!beside || is_there(beside) || !is_there(text("%s/model.onnx_data", package)))
    return trouble(CALL(CREATE_SESSION, Env *, const char *, Options *, Session **)(env, file, options, session));
  must(CALL(ADD_SESSION_CONFIG_ENTRY, Options *, const char *, const char *)(
      options, "session.model_external_initializers_file_folder_path", package));
  Blob model = whole(file);
  return trouble(CALL(CREATE_SESSION_FROM_ARRAY, Env *, const void *, size_t, Options *, Session **)(
      env, model.bytes, model.size, options, session));
}

static const char *run(Session *session, Tensor *inputs, size_t given, Tensor *outputs, size_t *count) {
  const char *names[MOST], *wanted[MOST];
  Value *values[MOST], *made[MOST] = {0};
  for (size_t i = 0; i < given; i++) {
    names[i] = inputs[i].name;
    must(CALL(CREATE_TENSOR_WITH_DATA, Memory *, void *, size_t, const int64_t *, size_t, int, Value **)(
        memory, inputs[i].raw, inputs[i].size, inputs[i].shape, inputs[i].rank, inputs[i].type, values + i));
  }
  must(CALL(SESSION_GET_OUTPUT_COUNT, Session *, size_t *)(session, count));
  if (*count > MOST) return "the graph has too many outputs";
  for (size_t i = 0; i < *count; i++)
    must(CALL(SESSION_GET_OUTPUT_NAME, Session *, size_t, Allocator *, char **)(
        session, i, allocator, (char **)(wanted + i)));
  const char *wrong = trouble(
      CALL(RUN, Session *, const void *, const char *const *, const Value *const *, size_t, const char *const *, size_t,
           Value **)(session, NULL, names, (const Value *const *)values, given, wanted, *count, made));
  for (size_t i = 0; i < given; i++) ((void (*)(Value *))api[RELEASE_VALUE])(values[i]);
  if (wrong) return wrong;
  for (size_t i = 0; i < *count; i++) {
    Shape *shape;
    void *data;
    Tensor *out = outputs + i;
    *out = (Tensor){.name = (char *)wanted[i], .count = 1};
    must(CALL(GET_TENSOR_TYPE_AND_SHAPE, Value *, Shape **)(made[i], &shape));
    must(CALL(GET_TENSOR_ELEMENT_TYPE, Shape *, int *)(shape, &out->type));
    must(CALL(GET_DIMENSIONS_COUNT, Shape *, size_t *)(shape, &out->rank));
    if (out->type < 1 || out->type > 11 || !WIDTH[out->type] || out->rank > 16) return "an output of an unknown type";
    must(CALL(GET_DIMENSIONS, Shape *, int64_t *, size_t)(shape, out->shape, out->rank));
    for (size_t axis = 0; axis < out->rank; axis++) out->count *= (size_t)out->shape[axis];
    must(CALL(GET_TENSOR_DATA, Value *, void **)(made[i], &data));
    out->size = out->count * WIDTH[out->type];
    out->raw = room(out->size);
    memcpy(out->raw, data, out->size);
    ((void (*)(Value *))api[RELEASE_VALUE])(made[i]);
  }
  return NULL;
}

/* --------------------------------------------------------------------------------------------------- comparing */

static size_t values_in_all, cases_in_all, lines_in_all, failed;
static char *failures[20];

static void print_line(const Json *records, const char *graph, const char *variant, const char *precision,
                       const char *data_set, const char *output, size_t values, double error, double bound,
                       const char *note) {
  int passed = values && !*note && error <= bound;
  (void)records;
  printf("{\"runtime\": \"c\", \"version\": \"%s\", \"provider\": \"cpu\", \"precision\": ", version);
  quoted(precision);
  printf(", \"graph\": ");
  quoted(graph);
  printf(", \"variant\": ");
  if (variant) quoted(variant);
  else printf("null");
  printf(", \"check\": \"golden\", \"case\": ");
  quoted(data_set);
  printf(", \"output\": ");
  quoted(output);
  printf(", \"values\": %zu, \"error\": ", values);
  if (*note || !isfinite(error)) printf("null");
  else printf("%.17g", error);
  printf(", \"bound\": %.17g, \"note\": ", bound);
  quoted(note);
  printf(", \"passed\": %s}\n", passed ? "true" : "false");
  fflush(stdout);
  values_in_all += values;
  lines_in_all++;
  if (!passed && failed++ < 20)
    failures[failed - 1] = *note ? text("%s, %s: %s", data_set, output, note)
                                 : text("%s, %s: error %.2e is over the bound %.2e", data_set, output, error, bound);
}

/* The values that choices lead to: places on the last axis of `among`; one out of range or taken twice is NaN. */
static double chosen(const Tensor *places, const Tensor *among, size_t place) {
  size_t width = (size_t)places->shape[places->rank - 1], from = (size_t)among->shape[among->rank - 1];
  size_t row = place / width;
  double asked = number(places, place);
  if (places->count / width != among->count / from || asked < 0 || asked >= (double)from) return NAN;
  for (size_t other = row * width; other < (row + 1) * width; other++)
    if (other != place && number(places, other) == asked) return NAN;
  return number(among, row * from + (size_t)asked);
}

static void compare(const Json *records, const char *graph, const char *variant, const char *precision,
                    const char *data_set, const char *output, double bound, const Tensor *found, size_t found_count,
                    const Tensor *expected, size_t expected_count) {
  const Tensor *one = named(found, found_count, output), *other = named(expected, expected_count, output);
  const Tensor *one_among = NULL, *other_among = NULL;
  const char *note = "";
  double error = 0;
  size_t strange = 0;
  if (!other) fail("%s has no output %s", data_set, output);
  const Json *specs = need(need(records, "signature"), "outputs");
  for (size_t i = 0; i < specs->count; i++) {
    const Json *kind = find(specs->items[i], "kind"), *along = find(specs->items[i], "along");
    if (!strcmp(need(specs->items[i], "name")->string, output) && kind && !strcmp(kind->string, "choices")) {
      one_among = named(found, found_count, along->string);
      other_among = named(expected, expected_count, along->string);
    }
  }
  if (!one) note = "the graph has no such output";
  else if (one->rank != other->rank || memcmp(one->shape, other->shape, one->rank * sizeof *one->shape))
    note = "its shape is another one than the reference's";
  else if (!one->count) note = "there is no value to compare";
  for (size_t i = 0; !*note && i < one->count; i++) {
    double a = one_among ? chosen(one, one_among, i) : number(one, i);
    double b = other_among ? chosen(other, other_among, i) : number(other, i);
    if (!isfinite(a) || !isfinite(b)) strange++;
    else if (fabs(a - b) > error) error = fabs(a - b);
  }
  if (strange) note = text("%zu of %zu values are NaN or infinite", strange, one->count);
  print_line(records, graph, variant, precision, data_set, output, one ? one->count : 0, error, bound, note);
}

/* ------------------------------------------------------------------------------------------- files of a package */

/* data sets: data set → output → {bound}; tolerances, if there are any, stand in place of those bounds. */
static void replay_file(const char *package, const Json *records, const char *graph, const char *variant,
                        const char *path, const char *precision, const Json *data_sets, const Json *tolerances) {
  Session *session = NULL;
  const char *closed = open_session(package, path, &session);
  for (size_t i = 0; i < data_sets->count; i++) {
    static Tensor inputs[MOST], expected[MOST], found[MOST];
    const char *data_set = data_sets->keys[i];
    char *folder = text("%s/%s", package, data_set);
    size_t given = read_folder(folder, "input_", inputs), wanted = read_folder(folder, "output_", expected), made = 0;
    const char *wrong = closed ? closed : run(session, inputs, given, found, &made);
    cases_in_all++;
    if (wrong) {
      print_line(records, graph, variant, precision, data_set, "run", 0, INFINITY, 0, wrong);
      continue;
    }
    const Json *outputs = data_sets->items[i];
    for (size_t j = 0; j < outputs->count; j++) {
      const char *name = outputs->keys[j];
      double bound = tolerances ? need(need(tolerances, name), "absolute")->number
                                : need(outputs->items[j], "bound")->number;
      compare(records, graph, variant, precision, data_set, name, bound, found, made, expected, wanted);
    }
    for (size_t j = 0; j < made; j++) free(found[j].raw);
  }
  if (session) ((void (*)(Session *))api[RELEASE_SESSION])(session);
}

static const char *asked[MOST];
static size_t asked_count;

static int is_asked(const char *variant) {
  for (size_t i = 0; i < asked_count; i++)
    if (!strcmp(asked[i], variant)) return 1;
  return !asked_count;
}

static void replay_graph(const char *package, const Json *records, const char *graph) {
  const Json *golden = need(records, "golden"), *variants = find(records, "variants");
  if (is_asked("canonical"))
    replay_file(package, records, graph, NULL, text("%s.onnx", graph), need(records, "precision")->string, golden,
                NULL);
  for (size_t i = 0; variants && i < variants->count; i++) {
    const Json *variant = variants->items[i], *own = find(variant, "golden"), *loose = find(variant, "tolerances");
    if (is_asked(variants->keys[i]) && (own || loose) && !strcmp(need(variant, "provider")->string, "cpu"))
      replay_file(package, records, graph, variants->keys[i], need(variant, "path")->string,
                  need(variant, "precision")->string, own ? own : golden, own ? NULL : loose);
  }
}

int main(int count, char **words) {
  const char *package = NULL, *library = NULL;
  for (int i = 1; i < count; i++) {
    if (!strcmp(words[i], "--library") && i + 1 < count) library = words[++i];
    else if (!strcmp(words[i], "--variant") && i + 1 < count && asked_count < MOST) asked[asked_count++] = words[++i];
    else if (!package) package = words[i];
    else fail("replay: %s is not understood", words[i]);
  }
  if (!package || !library) fail("usage: replay --library LIBRARY PACKAGE [--variant NAME]...");
  char *manifest = text("%s/isoformer.json", package);
  at = (const char *)whole(manifest).bytes;
  name_of_file = manifest;
  Json *records = read_value(0), *graphs = find(records, "graphs");
  open_library(library);
  if (!graphs) replay_graph(package, records, "model");
  for (size_t i = 0; graphs && i < graphs->count; i++) replay_graph(package, graphs->items[i], graphs->keys[i]);
  if (!lines_in_all) fail("%s: nothing to replay", package);
  printf("{\"passed\": %s, \"cases\": %zu, \"values\": %zu, \"failures\": [", failed ? "false" : "true", cases_in_all,
         values_in_all);
  for (size_t i = 0; i < failed && i < 20; i++) {
    if (i) printf(", ");
    quoted(failures[i]);
  }
  printf("]}\n");
  return failed ? 1 : 0;
}
