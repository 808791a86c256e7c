// A libnvrtc that compiles kernels for the CPU: g++ makes a shared object of `kernels.h` and the source, and that is the
// "cubin". EMULATOR is the folder of kernels.h, EMULATOR_LOG (optional) a file that gets a line for each compilation.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>
#include <unistd.h>

#define API extern "C" __attribute__((visibility("default")))
struct Program { std::string source, code, log; };
typedef Program* Handle;

API int nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
API int nvrtcGetNumSupportedArchs(int* count) { *count = 5; return 0; }
API int nvrtcGetSupportedArchs(int* archs)
{
    const int known[] = {75, 80, 86, 90, 100};
    memcpy(archs, known, sizeof known);
    return 0;
}
API const char* nvrtcGetErrorString(int code) { return code == 6 ? "NVRTC_ERROR_COMPILATION" : "emulated error"; }
API int nvrtcCreateProgram(Handle* program, const char* source, const char*, int, const char**, const char**)
{
    *program = new Program{source, "", ""};
    return 0;
}
API int nvrtcDestroyProgram(Handle* program) { delete *program; *program = nullptr; return 0; }

static std::string read(const std::string& path)
{
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

API int nvrtcCompileProgram(Handle program, int count, const char** options)
{
    const char* folder = getenv("EMULATOR");
    if (!folder) { program->log = "EMULATOR is not set"; return 6; }
    bool ieee = true;
    std::string arch;
    for (int i = 0; i < count; i++) {
        if (strstr(options[i], "use_fast_math")) ieee = false;
        if (strstr(options[i], "arch")) arch = options[i];
    }
    char name[] = "/tmp/emulated-XXXXXX";
    if (!mkdtemp(name)) return 6;
    const std::string stem = name, path = stem + "/kernel";
    {
        std::ofstream file(path + ".cpp");
        file << "#include \"" << folder << "/kernels.h\"\n#line 1 \"kernel.cu\"\n" << program->source << "\n";
        const std::regex kernel(R"(__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\()");
        std::sregex_iterator found(program->source.begin(), program->source.end(), kernel), end;
        for (; found != end; ++found) {
            const std::string f = (*found)[1];
            file << "extern \"C\" void* bind_" << f << "(void** p) { return emulated::bind(" << f << ", p); }\n";
        }
    }
    // Fused multiply-adds would make the CPU's bits differ from build to build; -O1 keeps the build short.
    std::string command = "g++ -std=c++17 -O2 -shared -fPIC -fno-stack-protector -fcf-protection=none -w -ffp-contract=off ";
    if (!ieee) command += "-fno-math-errno ";
    command += "-o " + path + ".so " + path + ".cpp 2> " + path + ".log";
    const int status = system(command.c_str());
    program->log = read(path + ".log");
    program->code = read(path + ".so");
    if (const char* log = getenv("EMULATOR_LOG")) std::ofstream(log, std::ios::app) << arch << "\n";
    (void)!system(("rm -r " + stem).c_str());
    return status == 0 ? 0 : 6;
}
API int nvrtcGetProgramLogSize(Handle program, size_t* size) { *size = program->log.size() + 1; return 0; }
API int nvrtcGetProgramLog(Handle program, char* log) { strcpy(log, program->log.c_str()); return 0; }
API int nvrtcGetCUBINSize(Handle program, size_t* size) { *size = program->code.size(); return 0; }
API int nvrtcGetCUBIN(Handle program, char* code) { memcpy(code, program->code.data(), program->code.size()); return 0; }
API int nvrtcGetPTXSize(Handle program, size_t* size) { return nvrtcGetCUBINSize(program, size); }
API int nvrtcGetPTX(Handle program, char* code) { return nvrtcGetCUBIN(program, code); }
API int nvrtcAddNameExpression(Handle, const char*) { return 0; }
API int nvrtcGetLoweredName(Handle, const char* name, const char** lowered) { *lowered = name; return 0; }
